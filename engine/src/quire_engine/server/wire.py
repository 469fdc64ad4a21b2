"""HTTP on the wire: uvicorn's protocol with a bound on headers, and with our errors where the bytes are no request.

The parser itself takes headers of any length, and keeps them all in memory before anybody can refuse them.
"""

import json
from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from quire_engine.server import errors

__all__ = ["Wire"]

MOST_HEADER_BYTES = 64 << 10  # with the request line
TOO_LARGE = f"the headers are larger than {MOST_HEADER_BYTES >> 10} KiB, the most that is taken"


class Wire(HttpToolsProtocol):
    _reading_headers = True
    _header_bytes = 0
    _cycles: Sequence[RequestResponseCycle] = ()  # requests in a row that have come, and are not answered

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._reading_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
                self._refuse("431 Request Header Fields Too Large", TOO_LARGE)

    def on_message_begin(self) -> None:
        self._reading_headers, self._header_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading_headers = False
        super().on_headers_complete()
        if self.cycle is not None:
            self._cycles = [*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle]

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        """The client will send no more: it has left. The connection is closed on return."""
        self._leave()

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
