"""What a client gets of an engine's answer, and when.

    a stream                      as it comes, byte by byte the engine's
    a short answer with a length  when it is whole: one that breaks off is a clean 502, and an engine's refusal a reason
                                  to ask another
    anything else                 as it comes, the head with the first byte of the body

A stream that was *opened*, with a head of our own because it had to wait, gets the body alone, and an answer that is no
stream becomes an error event. A stream that breaks off is ended by an error event as well, if it broke off between two
events; otherwise the client sees the connection end.
"""

import json
import re
from typing import Any, Protocol

from quire_router.framing import Head
from quire_router.replies import END_OF_CHUNKS, Refusal, chunk, error_event
from quire_router.upstream import Ending

__all__ = ["Answer", "Line"]

HELD_BACK = 64 << 10  # bytes of an answer that is handed on only when it is whole
TAIL = 2048  # bytes of an answer that are remembered
_USAGE = re.compile(rb'"(prompt|completion)_tokens"\s*:\s*(\d+)')


class Line(Protocol):
    """The way to the client."""

    paused: bool

    def write(self, data: bytes) -> None: ...

    def hang_up(self) -> None:
        """End the connection, after what was written."""
        ...


class Answer:
    __slots__ = (
        "_clock",
        "_gathered",
        "_line",
        "_tail",
        "_to_send",
        "events",
        "first_at",
        "head",
        "opened",
        "sent",
    )

    def __init__(self, line: Line, clock: Any, *, opened: bool) -> None:
        self._line = line
        self._clock = clock
        self.opened = opened
        self.sent = opened  # the client has a byte
        self.head: Head | None = None
        self.first_at: float | None = None  # when the first byte of the body came
        self.events = 0  # of a stream: about one a token
        self._gathered: bytearray | None = None  # None: what comes is passed on
        self._to_send = b""  # before the body
        self._tail = b""  # what came last: the usage is there, before the end of the stream and of its chunks

    @property
    def paused(self) -> bool:
        return self._line.paused

    def begin(self, head: Head) -> None:
        self.head = head
        if self.opened:
            self._gathered = None if head.status == 200 and head.is_stream else bytearray()
        elif head.length is not None and head.length <= HELD_BACK:
            self._gathered = bytearray()
        else:
            self._to_send = head.raw

    def body(self, data: bytes) -> None:
        if self.first_at is None:
            self.first_at = self._clock()
        if self._gathered is not None:
            self._gathered += data[: max(0, HELD_BACK - len(self._gathered))]
            return
        self._tail = (self._tail + data)[-TAIL:]
        self.events += data.count(b"data: {")
        if self._to_send:
            data, self._to_send = self._to_send + data, b""
        elif self.opened and self.head is not None and not self.head.chunked:
            data = chunk(data)
        self.sent = True
        self._line.write(data)

    @property
    def refused(self) -> dict[str, Any] | None:
        """The body of a 503 with which an engine said that it takes nothing now; it has not looked at the request."""
        if self.head is None or self.head.status != 503 or self._gathered is None:
            return None
        error = _error_in(bytes(self._gathered))
        return error if error is not None and error["error"].get("type") == "service_unavailable_error" else None

    def complete(self) -> int:
        """The engine has sent all: hand on what was held back. The status that the client saw."""
        assert self.head is not None
        if not self.opened:
            if self._gathered is not None or self._to_send:
                self._line.write(self.head.raw + (self._gathered or b""))
            if not self.head.keep_alive:
                self._line.hang_up()  # the head said so to the client, too
            return self.head.status
        if self._gathered is None:
            if not self.head.chunked:
                self._line.write(END_OF_CHUNKS)
            return 200
        error = (
            _error_in(bytes(self._gathered))
            or Refusal(status=502, message=f"the engine answered {self.head.status} where a stream was expected").body()
        )
        self._line.write(chunk(error_event(error)) + END_OF_CHUNKS)
        return self.head.status

    def broke_off(self, ending: Ending, refusal: Refusal) -> None:
        """After a byte was sent."""
        assert self.sent
        stream = self.opened or (self.head is not None and self.head.is_stream)
        begun = self.head is not None and self._gathered is None
        if not stream or (begun and not (ending.whole and self._between_events())):
            self._line.hang_up()
            return
        event = error_event(refusal.body())
        chunked = self.opened or (self.head is not None and self.head.chunked)
        self._line.write(chunk(event) + END_OF_CHUNKS if chunked else event)
        if not chunked:
            self._line.hang_up()

    def _between_events(self) -> bool:
        end = self._tail.removesuffix(b"\r\n") if self.head is not None and self.head.chunked else self._tail
        return not end or end.endswith((b"\n\n", b"\r\n\r\n"))

    def usage(self) -> dict[str, int]:
        """The tokens of the prompt and of the completion, as far as the answer says."""
        text = bytes(self._gathered) if self._gathered is not None else self._tail
        found = text[max(0, text.rfind(b'"usage"')) :] if b'"usage"' in text else b""
        return {name.decode(): int(number) for name, number in _USAGE.findall(found)}


def _error_in(body: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) and isinstance(parsed.get("error"), dict) else None
