"""A connection to an engine: one request at a time goes out, and the answer is passed on as it comes.

Knows nothing of models or routes: it is handed a request and a sink.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from quire_router.framing import MOST_HEAD, Framing, Head, Malformed, framing_of, parse_head

__all__ = ["Ending", "Sink", "Upstream", "connect"]

CONNECT_S = 1.0  # an engine on this network answers in milliseconds, or is not there


class Sink(Protocol):
    """Who gets an answer."""

    @property
    def paused(self) -> bool:
        """It cannot take more for now."""
        ...

    def begin(self, head: Head) -> None: ...

    def body(self, data: bytes) -> None:
        """Bytes as they were sent, the marks between chunks among them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended. `broken` says why it is not complete."""

    broken: str | None
    came: bool  # a byte of it
    whole: bool  # what was passed on ends between chunks


async def connect(address: str) -> "Upstream":
    """OSError, of which TimeoutError is one."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_S):
        if address.startswith("/"):
            _, upstream = await loop.create_unix_connection(Upstream, address)
        else:
            host, _, port = address.rpartition(":")
            try:
                _, upstream = await loop.create_connection(Upstream, host.strip("[]"), int(port))
            except UnicodeError as error:  # a label of more than 63 letters, which no resolver is asked for
                raise OSError(f"{host} is no name of a host: {error}") from None
    return upstream


class Upstream(asyncio.Protocol):
    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._done: asyncio.Future[str | None] | None = None
        self._framing: Framing | None = None  # of the answer's body, once its head is there
        self._unread = b""  # of the head
        self._came = False
        self._bodiless = False
        self._keep_alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def reusable(self) -> bool:
        return self._keep_alive and self._transport is not None and not self._transport.is_closing()

    @property
    def came(self) -> bool:
        """A byte of the answer under way."""
        return self._came

    async def relay(self, request: Sequence[bytes | bytearray], sink: Sink, *, bodiless: bool = False) -> Ending:
        """Send, and pass the answer on."""
        self._framing, self._unread, self._came, self._bodiless, self._keep_alive = None, b"", False, bodiless, False
        if self._transport is None:
            return Ending(broken="the engine closed the connection", came=False, whole=False)
        self._sink = sink
        self._done = asyncio.get_running_loop().create_future()
        self._transport.writelines(request)
        if sink.paused:
            self.pause()
        try:
            broken = await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._sink = None
            self.resume()  # whoever comes next starts afresh, and a connection that ends is noticed
            if self._transport is not None and self._transport.get_write_buffer_size():
                self._keep_alive = (
                    False  # answered before the request was read: the next one would wait behind its rest
                )
        whole = self._framing is not None and self._framing.whole
        return Ending(broken=broken, came=self._came, whole=whole)

    def fail(self, reason: str) -> None:
        """End the answer under way as broken."""
        self._finish(reason)
        self.close()

    # asyncio calls these

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self.close()  # nothing was asked
            return
        self._came = True
        try:
            if self._framing is None:
                data = self._read_head(data, sink)
                if self._framing is None:
                    return
            if data:
                passed = self._framing.feed(data)
                if passed:
                    sink.body(passed)
        except Malformed as error:
            self.fail(f"the engine's answer is not HTTP: {error}")
        if self._framing is not None and self._framing.ended:
            self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        broken = self._framing is None or self._framing.broke_off() or error is not None
        self._finish("the engine closed the connection" if broken else None)

    def _read_head(self, data: bytes, sink: Sink) -> bytes:
        """What came after the head, if it is there. Answers of 1xx are only the beginning."""
        data = self._unread + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > MOST_HEAD:
                    raise Malformed("headers without end")
                self._unread = data
                return b""
            head, data = parse_head(data[: end + 4]), data[end + 4 :]
            if head.status < 200:
                continue
            self._unread = b""
            self._framing = framing_of(head, bodiless=self._bodiless)
            self._keep_alive = head.keep_alive
            sink.begin(head)
            return data

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def close(self) -> None:
        self._keep_alive = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, broken: str | None) -> None:
        if broken is not None:
            self._keep_alive = False
        if self._done is not None and not self._done.done():
            self._done.set_result(broken)
