"""A connection to an engine: one request at a time goes out, and the answer is passed on as it comes.

Knows nothing of models or routes: it is handed a request and a sink.
"""

import asyncio
import contextlib
from typing import Protocol, cast

import httptools

__all__ = ["Sink", "Upstream", "connect"]


class Sink(Protocol):
    """Who gets the bytes of an answer."""

    paused: bool  # cannot take more for now

    def write(self, data: bytes) -> None: ...


async def connect(address: str) -> "Upstream":
    loop = asyncio.get_running_loop()
    if address.startswith("/"):
        _, upstream = await loop.create_unix_connection(Upstream, address)
    else:
        host, _, port = address.rpartition(":")
        _, upstream = await loop.create_connection(Upstream, host, int(port))
    return upstream


class Upstream(asyncio.Protocol):
    """A connection to an engine: sends one request at a time and passes on what comes back."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._client: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._begun = False  # a byte of the answer has come
        self._head = False  # the answer has no body whatever its headers say
        self._keep_alive = False  # the engine will take another request; the parser knows only while an answer ends
        self.complete = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    @property
    def reusable(self) -> bool:
        return self.complete and self._transport is not None and not self._transport.is_closing() and self._keep_alive

    async def relay(self, request: bytes, client: Sink, head: bool) -> int | None:
        """Send, pass the answer on, return its status; None if the connection ended before any of it came."""
        self._parser = httptools.HttpResponseParser(self)
        self._client, self._begun, self.complete, self._head = client, False, False, head
        if self._transport is None:
            return None
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        if client.paused:
            self.pause()
        try:
            await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._client = None
            self.resume()  # whoever comes next starts afresh, and a connection that ends is noticed
        return self._parser.get_status_code() if self._begun else None

    def data_received(self, data: bytes) -> None:
        if self._client is None:
            return self.close()  # nothing was asked
        self._begun = True
        self._client.write(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._finish()

    def on_headers_complete(self) -> None:
        if self._head:
            self.complete = True
            self._finish()

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:  # 1xx answers are only the beginning
            self.complete, self._keep_alive = True, self._parser.should_keep_alive()
            self._finish()

    def pause(self) -> None:
        if self._transport is not None:
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):
                self._transport.resume_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _finish(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
