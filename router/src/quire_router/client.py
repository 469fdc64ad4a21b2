"""A client's connection: reads requests, within bounds of size and time, and has them answered one after the other.

    head     MAX_HEAD bytes, HEAD_S from its first byte on       431, 408
    body     MAX_BODY bytes, BODY_S without a byte of it         413, 408
    between  KEEP_S                                              closed
    ahead    MAX_AHEAD bytes of requests that wait their turn    closed after what is being answered

What is no request, or could be read as two different ones, is a 400 and the end of the connection, for nobody knows
where the next one begins. An offer to upgrade is not taken up: the answer is HTTP/1.1.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import cast

import httptools

from quire_router.replies import Refusal
from quire_router.request import Request
from quire_router.upstream import Upstream

__all__ = ["HEAD_S", "Connection"]

MAX_HEAD = 64 << 10
MAX_BODY = 64 << 20  # images travel in prompts
MAX_AHEAD = 1 << 20
REQUEST_COST = 1 << 10  # bytes that one takes beside its own
HEAD_S = 20.0
BODY_S = 20.0
KEEP_S = 120.0
LINGER_S = 2.0

log = logging.getLogger("quire.router")


class Connection(asyncio.Protocol):
    def __init__(
        self, answer: Callable[[Request, "Connection"], Awaitable[None]], connections: "set[Connection]"
    ) -> None:
        """Is in `connections` while it is open."""
        self._answer = answer
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._request = Request()
        self._reading = False  # in the middle of a request
        self._unaccounted = 0  # bytes since the last one of a body: of a head, or of what pads chunks
        self._pending: deque[Request] = deque()
        self._ahead = 0  # bytes of those
        self._answering: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._deadline = 0.0
        self._last = False  # nothing is taken after what has come
        self._refused = False  # what has come
        self._lingering = False  # what still comes is read, lest a reset overtake the refusal
        self.upstream: Upstream | None = None
        self.paused = False  # the client reads more slowly than we write
        self._writable = asyncio.Event()  # the contrary, to be waited for
        self._writable.set()

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit it
        self._connections.add(self)
        self._grant(HEAD_S)

    def connection_lost(self, error: Exception | None) -> None:
        self._connections.discard(self)
        self._transport = None
        if self._answering is not None:
            self._answering.cancel()  # closes the engine's connection, which aborts the request there

    def data_received(self, data: bytes) -> None:
        if self._last:
            return  # nothing that follows is a request
        self._unaccounted += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser takes what follows for another protocol: read it again, without the offer.
            self._parser, self._unaccounted = httptools.HttpRequestParser(self), 0
            self.data_received(self._request.head_without_upgrade() + data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError:
            pass  # one of ours refused
        except httptools.HttpParserError as error:
            self._refuse(400, f"not an HTTP request: {error}")
        if self._reading and self._unaccounted > MAX_HEAD:
            self._refuse(431, _LARGE_HEAD)

    def pause_writing(self) -> None:
        self.paused = True
        self._writable.clear()
        if self.upstream is not None:
            self.upstream.pause()

    def resume_writing(self) -> None:
        self.paused = False
        self._writable.set()
        if self.upstream is not None:
            self.upstream.resume()

    # the parser calls these

    def on_message_begin(self) -> None:
        self._request = Request()
        self._reading = True
        self._grant(HEAD_S)

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._request.head_ended:
            self._request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self._request
        request.head_ended = True
        request.method, request.version = self._parser.get_method(), self._parser.get_http_version()
        if request.method == b"CONNECT":
            self._reject(405, "CONNECT: this is no proxy of that kind")
        if (doubt := request.doubt()) is not None:
            self._reject(400, doubt)
        if request.size > MAX_HEAD:
            self._reject(431, _LARGE_HEAD)
        length = request.header(b"content-length") or b"0"
        if int(length) > MAX_BODY:  # the parser has seen to it that it is a number
            self._reject(413, _TOO_LARGE)
        request.identify()
        self._unaccounted = 0
        self._grant(BODY_S)
        if self._answering is None:
            self._invite()

    def on_body(self, body: bytes) -> None:
        self._unaccounted = 0
        self._grant(BODY_S)
        self._request.body += body
        if len(self._request.body) > MAX_BODY:
            self._reject(413, _TOO_LARGE)
        self._check_ahead(len(self._request.body))

    def on_message_complete(self) -> None:
        request = self._request
        if self._parser.should_upgrade():
            return  # only its head has been read
        request.keep_alive = self._parser.should_keep_alive()
        request.arrived = asyncio.get_running_loop().time()
        self._reading = False
        self._unaccounted = 0
        self._pending.append(request)
        self._ahead += request.size + REQUEST_COST
        self._check_ahead(0)
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())

    # answering

    async def _answer_all(self) -> None:
        try:
            while self._pending and self._transport is not None and not self._transport.is_closing():
                request = self._pending.popleft()
                self._ahead -= request.size + REQUEST_COST
                await self._answer(request, self)
                if not request.keep_alive:
                    self.hang_up()
                    return
                if self._pending:  # many small ones hold up nobody else, nor fill the memory with answers not read
                    await asyncio.sleep(0)
                    await self._writable.wait()
            if self._refused:
                self._linger()
            elif self._last:
                self.hang_up()
        except Exception:
            log.exception("while answering a request")
            self.abort()
        finally:
            self._answering = None
            self._invite()
            self._grant(LINGER_S if self._lingering else HEAD_S if self._reading else KEEP_S)

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """Answer what is being answered, nothing more."""
        self._last = True
        if self._answering is None:
            self.hang_up()

    def expire(self, now: float) -> None:
        """Called now and then."""
        if self._answering is not None or now < self._deadline:
            return
        if self._lingering:
            self.abort()
            return
        if self._reading:
            self._refuse(408, "the request did not come in time")
        else:
            self.hang_up()

    def _grant(self, seconds: float) -> None:
        self._deadline = asyncio.get_running_loop().time() + seconds

    def _invite(self) -> None:
        """A client that waits to be asked for the body of the request that is being read."""
        request = self._request
        expects = request.head_ended and (request.header(b"expect") or b"").lower() == b"100-continue"
        if self._reading and expects and not request.body and not self._last:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _check_ahead(self, more: int) -> None:
        """Not by reading no more: then nobody would notice that the client has left."""
        if self._answering is not None and self._ahead + more > MAX_AHEAD:
            self._reject(413, _TOO_LARGE)

    def _reject(self, status: int, message: str) -> None:
        """From within the parser, which has to stop, too."""
        self._refuse(status, message)
        raise ValueError(message)

    def _refuse(self, status: int, message: str) -> None:
        """And close. What came before it is answered first: an error in the middle would be taken for a part of that."""
        if self._last:
            return
        self._last = self._refused = True
        if self._answering is not None:
            return
        self.write(Refusal(status=status, message=message).reply(b"", close=True))
        self._linger()

    def _linger(self) -> None:
        self._lingering = True
        self._grant(LINGER_S)
        if self._transport is not None and self._transport.can_write_eof():
            self._transport.write_eof()


_TOO_LARGE = f"the request is larger than {MAX_BODY >> 20} MiB"
_LARGE_HEAD = f"the headers are larger than {MAX_HEAD >> 10} KiB"
