"""A client's request, read whole: what of it is doubtful, and how it goes on to an engine.

Doubtful is what two readers could take for two different requests. The parser refuses most of that; here is the rest.
"""

import re
import uuid
from urllib.parse import unquote_to_bytes

__all__ = ["HOP_BY_HOP", "Request"]

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"http2-settings",
        b"expect",
        b"transfer-encoding",
        b"content-length",
        b"x-request-id",  # one is added, theirs or ours
    }
)
_USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Request:
    __slots__ = ("arrived", "body", "head_ended", "headers", "id", "keep_alive", "method", "target", "version")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.version = "1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.head_ended = False  # what looks like a header after this is a trailer, and none of ours
        self.keep_alive = True
        self.arrived = 0.0  # when it was there whole
        self.id = b""

    @property
    def path(self) -> str:
        """Decoded, as engines read it: what counts for /v1/completions counts for /v1/%63ompletions."""
        return unquote_to_bytes(self.target.partition(b"?")[0]).decode("utf-8", "replace")

    @property
    def size(self) -> int:
        return len(self.target) + len(self.body) + sum(len(name) + len(value) for name, value in self.headers)

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def doubt(self) -> str | None:
        """Why the head is refused, if it is."""
        names = [name.lower() for name, _ in self.headers]
        if self.version not in ("1.0", "1.1"):
            return f"HTTP/{self.version} is not spoken here: use HTTP/1.1"
        if not self.target.startswith(b"/"):
            return "the target of a request is a path"
        if b"#" in self.target:
            return "the target of a request has no fragment"
        if names.count(b"host") > 1 or (names.count(b"host") == 0 and self.version == "1.1"):
            return "a request has one Host header"
        if b"transfer-encoding" in names:
            if self.version == "1.0":
                return "HTTP/1.0 has no Transfer-Encoding"
            if (self.header(b"transfer-encoding") or b"").lower() != b"chunked":
                return "Transfer-Encoding: only chunked is taken"
        return None

    def identify(self) -> None:
        given = self.header(b"x-request-id") or b""
        self.id = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex.encode()

    def head_without_upgrade(self) -> bytes:
        """As it was sent, but for the offer to speak another protocol."""
        closes = b"close" in (self.header(b"connection") or b"").lower()
        kept = [(name, value) for name, value in self.headers if name.lower() not in (b"upgrade", b"connection")]
        kept += [(b"connection", b"close")] * closes
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version.encode())]
        return b"\r\n".join([*lines, *(name + b": " + value for name, value in kept), b"", b""])

    def forward(self) -> list[bytes | bytearray]:
        """As it goes to an engine: same target, headers and body, framed anew."""
        connection = b",".join(value for name, value in self.headers if name.lower() == b"connection")
        named = {name.strip().lower() for name in connection.split(b",")}
        drop = HOP_BY_HOP | named
        lines = [b"%s %s HTTP/%s" % (self.method, self.target, self.version.encode())]
        lines += [name + b": " + value for name, value in self.headers if name.lower() not in drop]
        lines += [b"x-request-id: " + self.id, b"content-length: %d" % len(self.body), b"", b""]
        return [b"\r\n".join(lines), self.body]
