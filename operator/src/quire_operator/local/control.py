"""The control socket: HTTP and JSON for the commands of the same user. Decides nothing; `Controlled` does.

GET  /                          who this is
GET  /resources                 a picture of each
POST /resources/NAME/scale      {"replicas": N}
POST /down                      {"now": false}
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

__all__ = ["ControlSocket", "Controlled"]


class Controlled(Protocol):
    def identity(self) -> dict[str, Any]: ...

    def pictures(self) -> list[dict[str, Any]]: ...

    def scale(self, name: str, replicas: int) -> None:
        """KeyError when there is no such resource."""
        ...

    def end(self, *, now: bool) -> None: ...


class ControlSocket:
    def __init__(self, controlled: Controlled) -> None:
        self._controlled = controlled
        app = web.Application()
        app.router.add_get("/", self._identity)
        app.router.add_get("/resources", self._resources)
        app.router.add_post("/resources/{name}/scale", self._scale)
        app.router.add_post("/down", self._down)
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self, folder: Path, name: str) -> None:
        """The folder is ours alone; through its descriptor its path may be longer than a socket's may."""
        await self._runner.setup()
        descriptor = os.open(folder, os.O_PATH)
        try:
            before = os.umask(0o177)
            try:
                await web.UnixSite(self._runner, f"/proc/self/fd/{descriptor}/{name}").start()
            finally:
                os.umask(before)
        finally:
            os.close(descriptor)

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _identity(self, request: web.Request) -> web.Response:
        return web.json_response(self._controlled.identity())

    async def _resources(self, request: web.Request) -> web.Response:
        return web.json_response(self._controlled.pictures())

    async def _scale(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        try:
            replicas = (await request.json())["replicas"]
        except (json.JSONDecodeError, KeyError, TypeError):
            replicas = None
        if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= 1000:
            return _refused(400, f"replicas is {replicas!r}, and should be a number from 0 to 1000")
        try:
            self._controlled.scale(name, replicas)
        except KeyError:
            return _refused(404, f"{name}: there is no such resource here")
        return web.json_response({})

    async def _down(self, request: web.Request) -> web.Response:
        words = await request.json() if request.can_read_body else {}
        self._controlled.end(now=bool(words.get("now")))
        return web.json_response({})


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)
