"""Moves requests to engines and answers back, the bytes of an answer untouched.

    client  --request, read whole-->  _Client  --pick by `model`-->  Upstream  -->  engine
            <--the engine's bytes, as they come, at the client's pace--

A request may go to a second connection only while no byte of an answer has come. After that the client
gets what the engine sent, to the last byte, and then the end of the connection.
"""

import asyncio
import json
import logging
from collections import defaultdict, deque
from typing import Any, cast

import httptools

from quire_router.metrics import RouterMetrics
from quire_router.registry import Backend, Registry
from quire_router.upstream import Upstream, connect

__all__ = ["Router"]

MAX_BODY = 64 << 20  # bytes of a request; images travel in prompts
MAX_HEAD = 64 << 10  # bytes of the headers
MAX_PENDING = 16  # requests of one connection that wait for their turn
MAX_IDLE = 64  # kept connections to each backend

log = logging.getLogger("quire.router")
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"upgrade",
    b"expect",
    b"transfer-encoding",
    b"content-length",
}


class Router:
    """The server. `registry` may change at any time; a request sees it once."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.metrics = RouterMetrics()
        self.idle: dict[str, deque[Upstream]] = defaultdict(deque)
        self.clients: set[_Client] = set()
        self.stopping = False
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (a free one for 0). OSError when it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self, patience: float = 300.0) -> None:
        """Take no more; every connection ends after the answer it is in, or is cut when patience ends."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        deadline = asyncio.get_running_loop().time() + patience
        for client in tuple(self.clients):
            client.close_when_answered()
        while self.clients and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self.abort()
        for kept in self.idle.values():
            for upstream in kept:
                upstream.close()

    def abort(self) -> None:
        """Cut every connection now."""
        for client in tuple(self.clients):
            client.abort()


class _Request:
    """One request, read whole."""

    __slots__ = ("body", "head_bytes", "head_ended", "headers", "keep_alive", "method", "target")

    def __init__(self) -> None:
        self.target = b""
        self.method = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.head_bytes = 0
        self.head_ended = False  # what looks like a header after this is a trailer, and none of ours
        self.keep_alive = True

    def forward(self) -> bytes:
        """The request as it goes to an engine: same target, headers and body, framed anew."""
        lines = [self.method + b" " + self.target + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers if name.lower() not in _HOP_BY_HOP]
        lines.append(b"content-length: %d" % len(self.body))
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body

    @property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("latin-1")

    def model(self) -> str | None:
        try:
            model = json.loads(self.body)["model"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        return model if isinstance(model, str) else None


class _Client(asyncio.Protocol):
    """A client's connection: parses requests and answers them one after the other."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._parser = httptools.HttpRequestParser(self)
        self._request = _Request()
        self._pending: deque[_Request] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._bodiless = False  # the answer under way is one to HEAD
        self.upstream: Upstream | None = None
        self.paused = False  # the client reads more slowly than we write

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class does not inherit it
        self._router.clients.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._router.clients.discard(self)
        self._transport = None
        if self._answering is not None:
            self._answering.cancel()  # closes the engine's connection, which aborts the request there

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse_and_close(400, "protocol upgrades are not supported")
        except httptools.HttpParserError as error:
            self._refuse_and_close(400, f"not an HTTP request: {error}")

    def pause_writing(self) -> None:
        self.paused = True
        if self.upstream is not None:
            self.upstream.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self.upstream is not None:
            self.upstream.resume()

    # the parser calls these

    def on_message_begin(self) -> None:
        self._request = _Request()

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.head_bytes += len(name) + len(value)
        if self._request.head_bytes > MAX_HEAD:
            self._refuse_and_close(431, f"the headers are larger than {MAX_HEAD >> 10} KiB")
        elif not self._request.head_ended:
            self._request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._request.head_ended = True
        if self._answering is None and any(
            name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in self._request.headers
        ):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._request.body += body
        if len(self._request.body) > MAX_BODY:
            self._refuse_and_close(413, f"the request is larger than {MAX_BODY >> 20} MiB")

    def on_message_complete(self) -> None:
        self._request.method = self._parser.get_method()
        self._request.keep_alive = self._parser.should_keep_alive()
        self._pending.append(self._request)
        if len(self._pending) >= MAX_PENDING and self._transport is not None:
            self._transport.pause_reading()
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())

    # answering

    async def _answer_all(self) -> None:
        try:
            while self._pending and self._transport is not None and not self._transport.is_closing():
                request = self._pending.popleft()
                self._transport.resume_reading()
                await self._answer(request)
                if not request.keep_alive or self._router.stopping:
                    self.close()
        except Exception:
            log.exception("while answering a request")
            self.abort()
        finally:
            self._answering = None

    async def _answer(self, request: _Request) -> None:
        registry = self._router.registry
        self._bodiless = request.method == b"HEAD"
        match request.path:
            case "/livez" | "/readyz" | "/health":
                return self.respond(200, b"ok", "text/plain")
            case "/metrics":
                return self.respond(200, self._router.metrics.render(), "text/plain; version=0.0.4; charset=utf-8")
            case "/v1/models":
                data = [{"id": name, "object": "model", "created": 0, "owned_by": "quire"} for name in registry.models]
                return self.respond(200, json.dumps({"object": "list", "data": data}).encode())
        model = request.model()
        if model is None:
            return self.refuse(
                400, "model: name one of " + (", ".join(registry.models) or "none, for nothing is served yet"), "model"
            )
        if not registry.knows(model):
            return self.refuse(
                404, f"the model {model!r} does not exist; served here: {', '.join(registry.models)}", "model"
            )
        with self._router.metrics.open(model) as outcome:
            backend = registry.pick(model)
            if backend is None:
                outcome.code = 503
                return self.refuse(503, f"no engine of {model} is ready yet: try again in a moment")
            backend.open += 1
            try:
                outcome.code = await self._forward(request, backend)
            finally:
                backend.open -= 1

    async def _forward(self, request: _Request, backend: Backend) -> int:
        """Relay; the status code that the client saw. A kept connection which turns out dead is replaced once."""
        idle = self._router.idle[backend.address]
        kept = idle.pop() if idle else None
        for upstream in (kept, None) if kept else (None,):
            try:
                upstream = upstream or await connect(backend.address)
            except OSError as error:
                self.refuse(502, f"the engine cannot be reached: {error.strerror or error}")
                return 502
            self.upstream = upstream
            try:
                status = await upstream.relay(request.forward(), self, self._bodiless)
            finally:
                self.upstream = None
            if status is None:
                upstream.close()
                continue
            if upstream.reusable and len(idle) < MAX_IDLE:
                idle.append(upstream)
            else:
                upstream.close()
            if not upstream.complete:
                self.close()  # the answer was cut: the client must notice
            return status
        self.refuse(502, "the engine closed the connection without an answer")
        return 502

    # writing to the client

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def close_when_answered(self) -> None:
        if self._answering is None:
            self.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def respond(self, status: int, body: bytes, kind: str = "application/json", extra: str = "") -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        self.write(head.encode() + (b"" if self._bodiless else body))

    def refuse(self, status: int, message: str, param: str | None = None) -> None:
        kind = (
            "not_found_error"
            if status == 404
            else "invalid_request_error"
            if status < 500
            else "service_unavailable_error"
        )
        error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": status}
        self.respond(status, json.dumps({"error": error}).encode(), extra="retry-after: 2\r\n" if status == 503 else "")

    def _refuse_and_close(self, status: int, message: str) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._answering is not None:
            self.abort()  # an error in the middle of another answer would be taken for a part of it
            return
        self._bodiless = False
        self.refuse(status, message)
        self.close()


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
}
