"""kopf, as an informer and nothing more: it watches, retries and logs in; we plan.

Only `index` (so that kopf lists every kind before any event is handled) and `on.event` are used. Creation,
update and deletion handlers, timers and daemons would add finalizers, which block deletion once the operator
is gone, or keep state in annotations. All that knows kopf stands in this file.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

import kopf
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient

from quire_api.deployment import GROUP, PLURAL, VERSION
from quire_operator.backends.cluster import ClusterBackend
from quire_operator.backends.store import Store
from quire_operator.metrics import OperatorMetrics
from quire_operator.reconcile import ResourceKey, reconcile
from quire_operator.render.names import MANAGED
from quire_operator.settings import OperatorSettings
from quire_operator.worker import Worker

__all__ = ["run"]

log = logging.getLogger("quire.operator")

WATCHED: tuple[tuple[str, str, str], ...] = (  # group, version, plural
    (GROUP, VERSION, PLURAL),
    ("apps", "v1", "deployments"),
    ("", "v1", "services"),
    ("", "v1", "serviceaccounts"),
    ("", "v1", "pods"),
)
QUEUE_STUCK_S = 60.0


async def run(settings: OperatorSettings, namespaces: list[str], port: int) -> None:
    """Until cancelled; whatever kopf cannot recover from ends it, and Kubernetes starts it again."""
    store, metrics = Store(), OperatorMetrics()
    async with await _api_client() as api, DynamicClient(api) as dynamic:
        backend = ClusterBackend(dynamic, store, settings)

        async def turn(key: ResourceKey) -> float | None:
            with metrics.reconcile():
                return await reconcile(key, backend)

        worker = Worker(turn)
        watching = asyncio.create_task(
            kopf.operator(
                registry=_registry(store, worker),
                settings=_settings(),
                identity="quire",  # else it asks for a user name, which a bare uid has not
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
            )
        )
        working = asyncio.create_task(worker.run())
        serving = await _serve_health(worker, metrics, port)
        try:
            done, _ = await asyncio.wait({watching, working}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            serving.close()
            working.cancel()
            watching.cancel()
            await asyncio.gather(watching, working, return_exceptions=True)


def _registry(store: Store, worker: Worker) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(id="login", errors=kopf.ErrorsMode.PERMANENT, registry=registry)(kopf.login_via_client)
    for group, version, plural in WATCHED:

        async def listed(body: Mapping[str, Any], **_: object) -> None:
            store.put(_plain(body))

        async def event(event: Mapping[str, Any], **_: object) -> None:
            obj = _plain(event["object"])
            key = store.drop(obj) if event["type"] == "DELETED" else store.put(obj)
            if key is not None:
                worker.wake(key)

        kopf.index(group, version, plural, id=f"listed-{plural}", registry=registry)(listed)
        kopf.on.event(group, version, plural, id=f"event-{plural}", registry=registry)(event)
    return registry


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """kopf's view of an object, as the dict it came in."""
    return dict(body.items())


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.watching.chunk_size = 500
    settings.scanning.disabled = True  # the CRD comes with the chart, before us
    settings.execution.max_workers = 1
    # The default one is shared by all kopf operators: kopf takes it off objects which others still need it on.
    settings.persistence.finalizer = f"{GROUP}/unused"
    ours = ",".join(f"{name}={value}" for name, value in MANAGED.items())
    for group, _, plural in WATCHED[1:]:
        settings.watching.label_selectors[(group, plural)] = ours
    return settings


async def _api_client() -> client.ApiClient:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    return client.ApiClient()


async def _serve_health(worker: Worker, metrics: OperatorMetrics, port: int) -> asyncio.Server:
    """/livez: the queue turns. /metrics."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split(b" ", 2)[1]
            stuck = time.monotonic() - worker.last_turn > QUEUE_STUCK_S
            status, body = b"200 OK", b"ok"
            if path == b"/metrics":
                body = metrics.render()
            elif path not in (b"/livez", b"/readyz"):
                status, body = b"404 Not Found", b"not here"
            elif stuck:
                status, body = b"503 Service Unavailable", b"the queue stands still"
            writer.write(
                b"HTTP/1.1 %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body)
            )
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "0.0.0.0", port)
