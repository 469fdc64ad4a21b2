"""What those who run an engine ask of it: `/load` says what it has to do, to whoever asks; the rest is not for the public,
for whoever can call that can drain it."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response

from quire_engine.server import errors
from quire_engine.server.generation import Generation

__all__ = ["admin_app", "admin_routes", "load_route"]


def load_route(load: Callable[[], dict[str, Any]]) -> APIRouter:
    router = APIRouter()

    @router.get("/load")
    async def load_() -> dict[str, Any]:
        """What an autoscaler wants to know, cheap enough to be asked often. /metrics says all of it to everybody, too."""
        return load()

    return router


def admin_routes(generation: Generation, load: Callable[[], dict[str, Any]]) -> APIRouter:
    router = APIRouter()

    @router.get("/admin/state")
    async def state() -> dict[str, Any]:
        reason = generation.why_not_ready()
        return {
            "ready": reason is None,
            "reason": reason,
            "draining": generation.draining,
            "models": list(generation.names),
            **load(),
        }

    @router.post("/admin/drain")
    async def drain() -> dict[str, Any]:
        """Take nothing new; what was accepted is finished. `inside` of /load says how much is left."""
        generation.draining = True
        return load()

    @router.post("/admin/resume")
    async def resume() -> dict[str, Any]:
        """Take requests again."""
        generation.draining = False
        return load()

    return router


def admin_app(*routes: APIRouter) -> FastAPI:
    app = FastAPI(title="Quire engine, administration", docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def no_pages(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Any page can have a browser send a POST to this machine."""
        if "origin" in request.headers:
            return JSONResponse(errors.body("pages may not administrate", "permission_error", 403), 403)
        return await call_next(request)

    for each in routes:
        app.include_router(each)
    return app
