"""The door of the API: counts what is inside, and says who may come in.

A request is *accepted* when it passes here, before its body is looked at, and is inside until the last byte
of its answer was handed over. Draining waits for those, and only those.
"""

from collections.abc import Callable

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from quire_engine.server import errors

__all__ = ["Door"]

RETRY_AFTER_S = "2"


class Door:
    """ASGI middleware before the routes that need the engine."""

    def __init__(self, app: ASGIApp, why_closed: Callable[[], str | None]) -> None:
        """`why_closed` says why nobody may come in now, or None."""
        self._app = app
        self._why_closed = why_closed
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        if reason := self._why_closed():
            body = errors.body(reason, "service_unavailable_error", 503)
            return await JSONResponse(body, 503, {"Retry-After": RETRY_AFTER_S})(scope, receive, send)
        self.inside += 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self.inside -= 1
