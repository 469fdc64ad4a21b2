"""The router's own answers, as bytes. Errors have OpenAI's shape, as an answer and as an event of a stream."""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["COMMENT", "END_OF_CHUNKS", "STREAM_HEAD", "Refusal", "chunk", "error_event", "reply"]

_REASONS = {
    200: "OK", 304: "Not Modified", 308: "Permanent Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
    404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout", 413: "Content Too Large", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 502: "Bad Gateway", 503: "Service Unavailable",
}  # fmt: skip
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "upstream_error",
    503: "service_unavailable_error",
}
END_OF_CHUNKS = b"0\r\n\r\n"
COMMENT = b": waiting for an engine\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request gets no answer of an engine."""

    status: int
    message: str
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        kind = _KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}

    def reply(self, request_id: bytes, *, bodiless: bool = False, close: bool = False) -> bytes:
        extra = {"x-request-id": request_id.decode()} if request_id else {}
        if self.retry_after_s is not None:
            extra["retry-after"] = str(self.retry_after_s)
        if self.status == 401:
            extra["www-authenticate"] = "Bearer"
        if close:
            extra["connection"] = "close"
        return reply(self.status, json.dumps(self.body()).encode(), extra=extra, bodiless=bodiless)


def reply(
    status: int,
    body: bytes,
    kind: str = "application/json",
    *,
    extra: dict[str, str] | None = None,
    bodiless: bool = False,
) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"content-type: {kind}", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (extra or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if bodiless else body)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-accel-buffering: no\r\ntransfer-encoding: chunked\r\nx-request-id: %s\r\n\r\n"
)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def error_event(error: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(error).encode() + b"\n\n"
