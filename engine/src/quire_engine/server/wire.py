"""HTTP on the wire: uvicorn's protocol with bounds on headers, and with our errors where the bytes are no request.

The parser itself takes headers of any length, and keeps them all in memory before anybody can refuse them; and it waits for
them for ever. Who asks for another protocol gets HTTP/1.1, as a server may do. Bodies that do not come are the door's to notice.
"""

import asyncio
import json
from collections.abc import Sequence

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quire_engine.server import errors

__all__ = ["Wire"]

MOST_HEADER_BYTES = 64 << 10  # with the request line
HEAD_S = 30.0  # in which headers have to come, after the connection, or after a byte that is not the body's
TOO_SLOW = f"the headers did not come within {HEAD_S:g} s"
TOO_LARGE = f"the headers are larger than {MOST_HEADER_BYTES >> 10} KiB, the most that is taken"


class Wire(HttpToolsProtocol):
    _reading_headers = True
    _header_bytes = 0
    _cycles: Sequence[RequestResponseCycle] = ()  # requests in a row that have come, and are not answered

    _head_limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        size = len(data)
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._reading_headers:
            self._header_bytes += size
            if self._header_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
                self._refuse("431 Request Header Fields Too Large", TOO_LARGE)
        if self._reading_headers or self.cycle is None or self.cycle.response_complete:
            self._await_head()

    def _parse(self, data: bytes) -> bytes:
        """What is left: after a request for another protocol, which the parser ends there, the same without the wish."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as end:
            if not self._wishes_upgrade():
                self.cycle.keep_alive = False  # a tunnel: what follows is no request
                return b""
            head = [self.parser.get_method() + b" " + self.url + b" HTTP/1.1"]
            head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
            return b"\r\n".join([*head, b"", b""]) + data[end.args[0] :]
        return b""

    def _wishes_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and self.parser.get_method() != b"CONNECT"

    def on_message_begin(self) -> None:
        self._reading_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        if self._wishes_upgrade():
            return
        self._reading_headers, self._header_bytes = False, 0
        self._stop_awaiting_head()
        super().on_headers_complete()
        if self.cycle is not None:
            self._cycles = [*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle]

    def on_message_complete(self) -> None:
        if not self._wishes_upgrade():
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._stop_awaiting_head()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The client will send no more: it has left. The connection is closed on return.

        One that only closed its sending side, and waits for its answer, looks the same, and gets none (docs/experiments.md).
        """
        self._leave()

    def _await_head(self) -> None:
        if self._head_limit is None and not self.transport.is_closing():
            self._head_limit = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_awaiting_head(self) -> None:
        if self._head_limit is not None:
            self._head_limit.cancel()
            self._head_limit = None

    def _give_up(self) -> None:
        self._head_limit = None
        if any(not cycle.response_complete for cycle in self._cycles):
            self._await_head()  # half a request behind one that is being answered
        elif self._header_bytes:
            self._refuse("408 Request Timeout", TOO_SLOW)
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse("400 Bad Request", msg)

    def _refuse(self, status: str, message: str) -> None:
        """And close: where the next request would begin is not known."""
        self._leave()
        body = json.dumps(errors.body(message, "invalid_request_error", int(status[:3]))).encode()
        head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        self.transport.write(head.encode() + b"\r\n" + body)
        self.transport.close()

    def _leave(self) -> None:
        """Nobody reads the answers any more. uvicorn tells it to the last request alone, not to one that it waits for."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
