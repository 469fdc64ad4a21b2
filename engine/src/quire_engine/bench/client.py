"""HTTP/1.1 to one server, for measuring: connections that stay, answers read as they come, nothing else.

Small on purpose: the client shares the machine with the server it measures. A time is taken once for each read of a
socket. Whatever goes wrong with a request is its `Failure`, never an exception.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import orjson

from quire_api.errors import InvalidInput
from quire_engine.bench.reading import Reading, error_of
from quire_engine.bench.statistics import Failure, Outcome

__all__ = ["Address", "Client", "Unreachable"]

LONGEST_ERROR = 65536  # bytes kept of an answer that is no 200


class Unreachable(Exception):
    """No server there, or one that does not answer as it should."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int
    tls: bool
    path: str  # that all paths begin with

    @classmethod
    def of(cls, url: str) -> "Address":
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise InvalidInput([f"--base-url: {url} is no address such as http://127.0.0.1:8000"])
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self._host}:{self.port}{self.path}"

    @property
    def authority(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


class Client:
    def __init__(self, address: Address, headers: Mapping[str, str], timeout_s: float) -> None:
        self.address = address
        self._head = "".join(
            f"{name}: {value}\r\n" for name, value in {"host": address.authority, **headers}.items()
        ).encode()
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[_Connection] = []

    async def ask(self, path: str, body: bytes) -> Outcome | Failure:
        """A request with `stream`, to the end of its answer."""
        request = self._request(b"POST", path, body)
        reading = Reading(time.perf_counter())
        try:
            async with asyncio.timeout(self._timeout_s):
                status, error = await self._exchange(request, lambda data: reading.feed(data, time.perf_counter()))
        except TimeoutError:
            return Failure(f"no end of the answer within {self._timeout_s:g} s")
        except OSError as failure:
            return Failure(f"the connection failed: {_why(failure)}")
        return reading.outcome() if status == 200 else Failure(_refused(status, error))

    async def get(self, path: str) -> Any:
        """A JSON document; Unreachable."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._timeout_s):
                status, error = await self._exchange(self._request(b"GET", path, b""), body.extend)
        except (OSError, TimeoutError) as failure:
            raise Unreachable(f"no answer from {self.address}{path}: {_why(failure)}") from None
        if status != 200:
            raise Unreachable(f"{self.address}{path}: {_refused(status, error)}")
        try:
            return orjson.loads(body)
        except ValueError:
            raise Unreachable(f"{self.address}{path} is not JSON: {bytes(body[:80])!r}") from None

    def close(self) -> None:
        """The connections that no request uses."""
        while self._idle:
            self._idle.pop().close()

    def _request(self, method: bytes, path: str, body: bytes) -> bytes:
        line = b"%s %s HTTP/1.1\r\n" % (method, (self.address.path + path).encode())
        kind = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b""
        return line + self._head + kind + b"\r\n" + body

    async def _exchange(self, request: bytes, sink: Callable[[bytes], object]) -> tuple[int, bytes]:
        """The status, and the body if it is not 200; else `sink` gets the body. OSError where the connection ends
        before an answer; one that has waited may have been closed by then, and the next is tried."""
        while True:
            reused = bool(self._idle)
            connection = self._idle.pop() if reused else await self._connect()
            try:
                status, error = await connection.exchange(request, sink)
            except BaseException:
                connection.close()
                raise
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()
            if status is not None:
                return status, error
            if not reused:
                raise ConnectionError("closed without an answer")

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.address.host, self.address.port, ssl=self._tls)
        return connection


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._keep_alive = False

    async def exchange(self, request: bytes, sink: Callable[[bytes], object]) -> tuple[int | None, bytes]:
        self._parser = httptools.HttpResponseParser(self)
        self._status: int | None = None
        self._sink, self._error = sink, bytearray()
        self._keep_alive = False
        if self._transport is not None:
            self._done = asyncio.get_running_loop().create_future()
            self._transport.write(request)
            await self._done
        return self._status, bytes(self._error)

    @property
    def reusable(self) -> bool:
        return self._keep_alive and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            return self.close()  # nothing was asked
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._status = None
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finish()

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self._status = status if status >= 200 else None

    def on_body(self, data: bytes) -> None:
        if self._status == 200:
            self._sink(data)
        elif len(self._error) < LONGEST_ERROR:
            self._error += data

    def on_message_complete(self) -> None:
        if self._status is not None:
            self._keep_alive = self._parser.should_keep_alive()
            self._finish()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)


def _refused(status: int, body: bytes) -> str:
    try:
        said = error_of(orjson.loads(body))
    except ValueError:
        said = error_of(body.decode("utf-8", "replace").strip())
    return f"HTTP {status}: {said}" if said else f"HTTP {status}"


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__
