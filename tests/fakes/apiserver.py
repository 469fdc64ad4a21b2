"""An API server that lists and watches, over real HTTP, and can be cut, compacted and taken away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

__all__ = ["ApiServer", "slice_of"]

PAGE = 2  # small, so that every list has several
OURS = "quire.dev/llmdeployment"


def slice_of(service: str, *addresses: str, port: int = 8000, namespace: str = "default", **conditions: bool) -> Any:
    """An EndpointSlice; engines are ready unless `conditions` say otherwise."""
    labels = {OURS: service, "kubernetes.io/service-name": service}
    endpoints = [{"addresses": [address], "conditions": conditions or {"ready": True}} for address in addresses]
    return {
        "metadata": {"name": f"{service}-x", "namespace": namespace, "labels": labels},
        "ports": [{"name": "http", "port": port}],
        "endpoints": endpoints,
    }


class ApiServer:
    """`gone_as_event`: what is no longer known is told of in the stream, else by the status of the answer."""

    def __init__(self, *, gone_as_event: bool = True) -> None:
        self.watches = 0  # that were begun
        self.lists = 0
        self.refuses = 0  # so many watches, with a 500
        self._gone_as_event = gone_as_event
        self._version = 100
        self._compacted = 0  # what happened up to here is forgotten
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}  # plural and uid -> object
        self._events: list[tuple[int, str, dict[str, Any]]] = []  # version, plural, event
        self._changed = asyncio.Condition()
        self._cuts = 0
        self._port = 0
        self._runner: web.AppRunner | None = None

    async def put(self, plural: str, obj: dict[str, Any]) -> str:
        """Its uid, which is made of its namespace and name."""
        metadata = obj["metadata"]
        uid = f"{metadata.get('namespace', 'default')}/{metadata['name']}"
        known = (plural, uid) in self._objects
        self._version += 1
        kept = {"creationTimestamp": f"2026-01-01T00:00:{self._version % 60:02}Z", **metadata}
        if known:
            kept["creationTimestamp"] = self._objects[plural, uid]["metadata"]["creationTimestamp"]
        metadata = {"namespace": "default", **kept, "uid": uid, "resourceVersion": str(self._version)}
        self._objects[plural, uid] = {**obj, "metadata": metadata}
        await self._tell(plural, "MODIFIED" if known else "ADDED", self._objects[plural, uid])
        return uid

    async def delete(self, plural: str, uid: str) -> None:
        self._version += 1
        gone = self._objects.pop((plural, uid))
        gone["metadata"]["resourceVersion"] = str(self._version)
        await self._tell(plural, "DELETED", gone)

    async def cut(self) -> None:
        """Every watch, in the middle of a line."""
        self._cuts += 1
        async with self._changed:
            self._changed.notify_all()

    def compact(self) -> None:
        """Forget what happened, as etcd does: whoever wants to go on from before now has to list."""
        self._version += 1
        self._compacted = self._version

    async def start(self) -> None:
        """On the port that it had before, if any."""
        app = web.Application()
        app.router.add_get("/apis/{group}/{version}/{plural}", self._answer)
        app.router.add_get("/apis/{group}/{version}/namespaces/{namespace}/{plural}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        assert self._runner.addresses
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self.cut()
        assert self._runner is not None
        await self._runner.cleanup()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[ApiClient]:
        async with ApiClient(Configuration(host=f"http://127.0.0.1:{self._port}")) as api:
            yield api

    def kubeconfig(self, folder: Path) -> Path:
        """For processes that are to talk to it."""
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        user = {"name": "u", "user": {"token": "t"}}
        written = folder / "kubeconfig"
        written.write_text(
            json.dumps({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "c"})
        )
        return written

    async def _tell(self, plural: str, kind: str, obj: dict[str, Any]) -> None:
        self._events.append((self._version, plural, {"type": kind, "object": obj}))
        async with self._changed:
            self._changed.notify_all()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        query, plural = request.query, request.match_info["plural"]
        namespace = request.match_info.get("namespace")
        assert plural != "endpointslices" or query["labelSelector"] == OURS
        if query.get("watch", "").lower() == "true":
            return await self._watch(request, plural, namespace, int(query["resourceVersion"]))
        self.lists += 1
        found = [o for (p, _), o in sorted(self._objects.items()) if p == plural and _within(o, namespace)]
        begin = int(query.get("continue", 0))
        more = str(begin + PAGE) if begin + PAGE < len(found) else ""
        about = {"resourceVersion": str(self._version), "continue": more}
        return web.json_response({"metadata": about, "items": found[begin : begin + PAGE]})

    async def _watch(
        self, request: web.Request, plural: str, namespace: str | None, version: int
    ) -> web.StreamResponse:
        self.watches += 1
        if self.refuses:
            self.refuses -= 1
            return web.json_response({"kind": "Status", "code": 500}, status=500)
        if version < self._compacted and not self._gone_as_event:
            return web.json_response({"kind": "Status", "code": 410}, status=410)
        response, cuts = web.StreamResponse(), self._cuts
        await response.prepare(request)
        if version < self._compacted:
            await response.write(_line({"type": "ERROR", "object": {"code": 410, "message": "too old"}}))
            return response
        while self._cuts == cuts:
            for at, its_plural, event in self._events:
                if at > version and its_plural == plural and _within(event["object"], namespace):
                    await response.write(_line(event))
            version = self._version
            await response.write(_line({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}))
            async with self._changed:
                if self._cuts == cuts and version == self._version:
                    await self._changed.wait()
        with contextlib.suppress(ConnectionError):  # its client may have left
            await response.write(b'{"type": "ADD')
        if request.transport is not None:
            request.transport.abort()
        return response


def _within(obj: dict[str, Any], namespace: str | None) -> bool:
    return namespace in (None, obj["metadata"]["namespace"])


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
