"""Moves requests to engines and answers back, the bytes of an answer untouched.

    client  --request, read whole-->  _Client  --pick by `model`-->  _Upstream  -->  engine
            <--the engine's bytes, as they come, at the client's pace--

A request may go to a second connection only while no byte of an answer has come. After that the client
gets what the engine sent, to the last byte, and then the end of the connection.
"""

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from typing import Any, cast

import httptools

from quire_router.metrics import RouterMetrics
from quire_router.registry import Backend, Registry

__all__ = ["Router"]

MAX_BODY = 64 << 20  # bytes of a request; images travel in prompts
MAX_IDLE = 64  # kept connections to each backend
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
        self.idle: dict[str, deque[_Upstream]] = defaultdict(deque)
        self.clients: set[_Client] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (a free one for 0). OSError when it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Take no more connections; let what is being answered finish."""
        if self._server is None:
            return
        self._server.close()
        while any(client.busy for client in self.clients):
            await asyncio.sleep(0.02)
        for client in tuple(self.clients):
            client.close()
        for kept in self.idle.values():
            for upstream in kept:
                upstream.close()


class _Request:
    """One request, read whole."""

    __slots__ = ("body", "headers", "keep_alive", "method", "target")

    def __init__(self) -> None:
        self.target = b""
        self.method = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
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
        except (ValueError, KeyError, TypeError):
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
        self.upstream: _Upstream | None = None

    @property
    def busy(self) -> bool:
        return self._answering is not None

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
        if self.upstream is not None:
            self.upstream.pause()

    def resume_writing(self) -> None:
        if self.upstream is not None:
            self.upstream.resume()

    # the parser calls these

    def on_message_begin(self) -> None:
        self._request = _Request()

    def on_url(self, url: bytes) -> None:
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if any(name.lower() == b"expect" and value.lower() == b"100-continue" for name, value in self._request.headers):
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._request.body += body
        if len(self._request.body) > MAX_BODY:
            self._refuse_and_close(413, f"the request is larger than {MAX_BODY >> 20} MiB")

    def on_message_complete(self) -> None:
        self._request.method = self._parser.get_method()
        self._request.keep_alive = self._parser.should_keep_alive()
        self._pending.append(self._request)
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())

    # answering

    async def _answer_all(self) -> None:
        try:
            while self._pending and self._transport is not None:
                request = self._pending.popleft()
                await self._answer(request)
                if not request.keep_alive:
                    self.close()
        finally:
            self._answering = None

    async def _answer(self, request: _Request) -> None:
        registry = self._router.registry
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
        backend = registry.pick(model)
        if backend is None:
            return self.refuse(503, f"no engine of {model} is ready yet: try again in a moment")
        with self._router.metrics.open(model) as outcome:
            backend.open += 1
            try:
                outcome.code = await self._forward(request, backend)
            finally:
                backend.open -= 1

    async def _forward(self, request: _Request, backend: Backend) -> int:
        """Relay; the status code that the client saw. A kept connection which turns out dead is replaced once."""
        idle = self._router.idle[backend.address]
        data = request.forward()
        head = request.method == b"HEAD"
        while True:
            kept = idle.pop() if idle else None
            try:
                upstream = kept or await _connect(backend.address)
            except OSError as error:
                self.refuse(502, f"the engine cannot be reached: {error.strerror or error}")
                return 502
            self.upstream = upstream
            try:
                status = await upstream.relay(data, self, head)
            finally:
                self.upstream = None
            if status is not None:
                if upstream.reusable and len(idle) < MAX_IDLE:
                    idle.append(upstream)
                else:
                    upstream.close()
                if not upstream.complete:
                    self.close()  # the answer was cut: the client must notice
                return status
            upstream.close()
            if kept is None:
                self.refuse(502, "the engine closed the connection without an answer")
                return 502

    # writing to the client

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def respond(self, status: int, body: bytes, kind: str = "application/json", extra: str = "") -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{extra}\r\n"
        self.write(head.encode() + body)

    def refuse(self, status: int, message: str, param: str | None = None) -> None:
        kind = {400: "invalid_request_error", 404: "not_found_error", 413: "invalid_request_error"}.get(
            status, "service_unavailable_error"
        )
        error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": status}
        self.respond(status, json.dumps({"error": error}).encode(), extra="retry-after: 2\r\n" if status == 503 else "")

    def _refuse_and_close(self, status: int, message: str) -> None:
        self.refuse(status, message)
        self.close()


_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    413: "Content Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
}


async def _connect(address: str) -> "_Upstream":
    loop = asyncio.get_running_loop()
    if address.startswith("/"):
        _, upstream = await loop.create_unix_connection(_Upstream, address)
    else:
        host, _, port = address.rpartition(":")
        _, upstream = await loop.create_connection(_Upstream, host, int(port))
    return upstream


class _Upstream(asyncio.Protocol):
    """A connection to an engine: sends one request at a time and passes on what comes back."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._client: _Client | None = None
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

    async def relay(self, request: bytes, client: _Client, head: bool) -> int | None:
        """Send, pass the answer on, return its status; None if the connection ended before any of it came."""
        self._parser = httptools.HttpResponseParser(self)
        self._client, self._begun, self.complete, self._head = client, False, False, head
        if self._transport is None:
            return None
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await self._done
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._client = None
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
