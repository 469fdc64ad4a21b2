"""An API server with one kind, Leases, over real HTTP: versions that must match, answers that do not come, rights that are missing."""

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

__all__ = ["LeaseServer"]


class LeaseServer:
    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.writers: list[str] = []  # who became the holder with each write; "" gave it back
        self.asked = 0
        self.hangs = False  # takes every request, and answers none
        self.refuses = 0  # with this status, if any
        self.loses_answers = 0  # so many writes are carried out and not answered
        self._version = 0
        self._port = 0
        self._asked = asyncio.Event()

    async def requests(self, count: int) -> None:
        """Until so many more have come."""
        for _ in range(count):
            self._asked.clear()
            await asyncio.wait_for(self._asked.wait(), 20)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        at = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        app.router.add_get(at + "/{name}", self._get)
        app.router.add_put(at + "/{name}", self._put)
        app.router.add_post(at, self._post)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[ApiClient]:
        async with ApiClient(Configuration(host=f"http://127.0.0.1:{self._port}")) as api:
            yield api

    async def _get(self, request: web.Request) -> web.Response:
        if (answer := await self._trouble()) is not None:
            return answer
        return web.json_response(self.lease) if self.lease is not None else _status(404)

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.json()
        if (answer := await self._trouble()) is not None:
            return answer
        return await self._keep(body, 201) if self.lease is None else _status(409)

    async def _put(self, request: web.Request) -> web.Response:
        body = await request.json()
        if (answer := await self._trouble()) is not None:
            return answer
        if self.lease is None:
            return _status(404)
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            return _status(409)
        return await self._keep(body)

    async def _keep(self, body: dict[str, Any], status: int = 200) -> web.Response:
        self._version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        self.writers.append(body["spec"]["holderIdentity"])
        if self.loses_answers:
            self.loses_answers -= 1
            await asyncio.sleep(3600)
        return web.json_response(self.lease, status=status)

    async def _trouble(self) -> web.Response | None:
        self.asked += 1
        self._asked.set()
        if self.hangs:
            await asyncio.sleep(3600)
        return _status(self.refuses) if self.refuses else None


def _status(code: int) -> web.Response:
    return web.json_response({"kind": "Status", "code": code}, status=code)
