"""Where an engine's answer ends, and up to where it may be passed on: pure, bytes in, the same bytes out.

    Counted    content-length      all that comes
    Chunks     chunked             up to the end of a whole chunk: what breaks off in the middle of one can then be
                                   ended well. Chunks too large for that are passed on as they come.
    UntilEnd   neither             all that comes; the end of the connection is the end

Made for answers of engines, which we trust more than clients; what is no HTTP is `Malformed` all the same.
"""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["MOST_HEAD", "Framing", "Head", "Malformed", "framing_of", "parse_head"]

MOST_HEAD = 64 << 10
LARGE = 64 << 10  # bytes of a chunk that is passed on in parts
LONGEST_LINE = 1024  # of a chunk's size, with its extensions
_FRAMING = (b"content-length", b"transfer-encoding")
_BODILESS = (*range(100, 200), 204, 304)


class Malformed(ValueError):
    """The engine's answer is no HTTP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    raw: bytes  # with the empty line
    status: int
    length: int | None
    chunked: bool
    keep_alive: bool  # after the body, which does not end with the connection
    is_stream: bool  # of server-sent events that can be read, and added to: not compressed


def parse_head(raw: bytes) -> Head:
    first, *lines = raw[:-4].split(b"\r\n")
    version, _, rest = first.partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
        raise Malformed(f"it begins with {first[:40]!r}")
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Malformed(f"a header without a colon: {line[:40]!r}")
        name, value = name.lower(), value.strip()
        if name in _FRAMING and fields.get(name, value) != value:
            raise Malformed(f"two headers {name.decode()} that differ")
        fields[name] = value
    length = fields.get(b"content-length")
    if length is not None and not length.isdigit():
        raise Malformed(f"content-length: {length[:40]!r}")
    chunked, status = fields.get(b"transfer-encoding", b"").lower() == b"chunked", int(rest[:3])
    if chunked and length is not None:
        raise Malformed("content-length and transfer-encoding")
    connection = {token.strip() for token in fields.get(b"connection", b"").lower().split(b",")}
    kept = b"close" not in connection if version == b"HTTP/1.1" else b"keep-alive" in connection
    return Head(
        raw=raw,
        status=status,
        length=None if length is None else int(length),
        chunked=chunked,
        keep_alive=kept and (chunked or length is not None or status in _BODILESS),
        is_stream=fields.get(b"content-type", b"").lower().startswith(b"text/event-stream")
        and fields.get(b"content-encoding", b"identity") == b"identity",
    )


class Framing(Protocol):
    @property
    def ended(self) -> bool: ...

    @property
    def whole(self) -> bool:
        """What was passed on so far ends where more may be added: not inside of a chunk."""
        ...

    def feed(self, data: bytes) -> bytes: ...

    def broke_off(self) -> bool:
        """The connection has ended: too early?"""
        ...


def framing_of(head: Head, *, bodiless: bool) -> Framing:
    """`bodiless`: the answer to HEAD."""
    if bodiless or head.status in _BODILESS:
        return Counted(0)
    if head.chunked:
        return Chunks()
    return UntilEnd() if head.length is None else Counted(head.length)


class Counted:
    whole = False  # nothing can be added to it

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = length == 0

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            raise Malformed("more bytes than content-length says")
        self._left -= len(data)
        self.ended = self._left == 0
        return data

    def broke_off(self) -> bool:
        return not self.ended


class UntilEnd:
    ended = False
    whole = True

    def feed(self, data: bytes) -> bytes:
        return data

    def broke_off(self) -> bool:
        return False


class Chunks:
    def __init__(self) -> None:
        self.ended = False
        self._tail = b""  # of a chunk that is not whole yet
        self._left = 0  # bytes of a large chunk that are to be passed on as they come

    @property
    def whole(self) -> bool:
        return self._left == 0

    def feed(self, data: bytes) -> bytes:
        if self._tail:
            data = self._tail + data
            self._tail = b""
        if self._left >= len(data):
            self._left -= len(data)
            return data
        at = self._left
        self._left = 0
        while at < len(data) and not self.ended:
            after = self._after_chunk(data, at)
            if after is None:
                break
            at = after
        if self.ended and at < len(data):
            raise Malformed("bytes after the last chunk")
        if at > len(data):
            self._left = at - len(data)
            return data
        self._tail = data[at:]
        return data[:at] if self._tail else data

    def _after_chunk(self, data: bytes, at: int) -> int | None:
        """Where the chunk that begins at `at` ends, beyond the data for a large one; None: it is not whole."""
        line = data.find(b"\r\n", at, at + LONGEST_LINE)
        if line < 0:
            if len(data) - at >= LONGEST_LINE:
                raise Malformed("a chunk without a size")
            return None
        digits = data[at:line].partition(b";")[0].rstrip()
        if not digits or digits.strip(_HEX):
            raise Malformed(f"the size of a chunk: {digits[:40]!r}")
        size = int(digits, 16)
        if size == 0:
            end = data.find(b"\r\n\r\n", line)  # trailers, if any, lie between
            if end < 0 and len(data) - line > MOST_HEAD:
                raise Malformed("trailers without end")
            self.ended = end >= 0
            return end + 4 if self.ended else None
        after = line + 2 + size + 2
        if after > len(data):
            return after if size > LARGE else None
        if data[after - 2 : after] != b"\r\n":
            raise Malformed("a chunk longer than its size")
        return after

    def broke_off(self) -> bool:
        return not self.ended


_HEX = b"0123456789abcdefABCDEF"
