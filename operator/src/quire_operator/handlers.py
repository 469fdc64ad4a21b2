"""kopf, as an informer and nothing more: it watches, retries and logs in; we plan.

Only `index` (so that kopf lists every kind before any event is handled) and `on.event` are used. Creation,
update and deletion handlers, timers and daemons would add finalizers, which block deletion once the operator
is gone, or keep state in annotations. All that knows kopf stands in this file.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import kopf
from kubernetes.aio import client, config
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError, ResourceNotFoundError

from quire_api.deployment import GROUP, KIND, PLURAL, VERSION
from quire_api.errors import InvalidInput
from quire_operator.backends.cluster import ClusterBackend
from quire_operator.backends.refusals import Refusals
from quire_operator.backends.store import Store
from quire_operator.metrics import OperatorMetrics
from quire_operator.reconcile import ResourceKey, reconcile
from quire_operator.render.names import MANAGED
from quire_operator.router_state import NoRouter, Routers, addresses_of
from quire_operator.scrape import Scraper
from quire_operator.settings import OperatorSettings
from quire_operator.worker import Worker

__all__ = ["WATCHED", "run"]

log = logging.getLogger("quire.operator")

WATCHED: tuple[tuple[str, str, str, str], ...] = (  # group, version, plural, kind
    (GROUP, VERSION, PLURAL, KIND),
    ("apps", "v1", "deployments", "Deployment"),
    ("apps", "v1", "replicasets", "ReplicaSet"),
    ("apps", "v1", "controllerrevisions", "ControllerRevision"),
    ("", "v1", "services", "Service"),
    ("", "v1", "serviceaccounts", "ServiceAccount"),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    ("batch", "v1", "jobs", "Job"),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    ("", "v1", "pods", "Pod"),
)
OURS = ",".join(f"{name}={value}" for name, value in MANAGED.items())
TURN_MOST_S = 45.0
RELIST_S = 600.0
PAGE = 500
QUEUE_STUCK_S = 60.0


async def run(settings: OperatorSettings, namespaces: list[str], port: int) -> None:
    """Until cancelled; whatever kopf cannot recover from ends it, and Kubernetes starts it again."""
    store, metrics, listed = Store(), OperatorMetrics(), asyncio.Event()
    async with await _api_client() as api, DynamicClient(api) as dynamic:
        await _require_kinds(dynamic)
        backend = ClusterBackend(dynamic, store, settings)

        async def turn(key: ResourceKey) -> float | None:
            with metrics.reconcile():
                return await reconcile(key, backend)

        worker = Worker(turn, TURN_MOST_S)
        routers = _routers(settings, lambda: scraper.look_now())
        scraper = Scraper(backend.scrape_targets, routers or NoRouter(), worker.wake)
        backend.decision = scraper.decision
        refusals = Refusals(dynamic, backend.podless_jobs, worker.wake)
        backend.refusal = refusals.of
        tasks = {
            asyncio.create_task(
                kopf.operator(
                    registry=_registry(store, worker),
                    settings=_settings(),
                    identity="quire",  # else it asks for a user name, which a bare uid has not
                    standalone=True,
                    clusterwide=not namespaces,
                    namespaces=namespaces,
                    ready_flag=listed,
                )
            ),
            asyncio.create_task(worker.run()),
            asyncio.create_task(scraper.run()),
            asyncio.create_task(refusals.run()),
            asyncio.create_task(_relist(dynamic, store, worker, namespaces)),
            *([asyncio.create_task(routers.run())] if routers is not None else []),
        }
        serving = await _serve_health(worker, metrics, listed, port)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            serving.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _routers(settings: OperatorSettings, look_now: Callable[[], None]) -> Routers | None:
    return Routers(lambda: addresses_of(settings.routers), look_now) if settings.routers else None


async def _require_kinds(dynamic: DynamicClient) -> None:
    """kopf looks for its kinds once, and would be deaf for ever to one that comes later: end instead, and be restarted."""
    for group, version, _, kind in WATCHED:
        try:
            await dynamic.resources.get(api_version=f"{group}/{version}".lstrip("/"), kind=kind)
        except ResourceNotFoundError:
            raise InvalidInput(
                [f"the cluster does not serve {kind} ({group}/{version}): is the CRD installed?"]
            ) from None


async def _relist(dynamic: DynamicClient, store: Store, worker: Worker, namespaces: list[str]) -> None:
    """Now and then compare with full lists: after a watch was cut, kopf does not tell of what went meanwhile."""
    while True:
        await asyncio.sleep(RELIST_S)
        for group, version, _, kind in WATCHED:
            api = await dynamic.resources.get(api_version=f"{group}/{version}".lstrip("/"), kind=kind)
            scopes: list[str | None] = [*namespaces] or [None]
            for namespace in scopes:
                selector = None if kind == KIND else OURS
                uids: set[str] = set()
                following: str | None = None
                try:
                    while following != "":
                        page = await api.get(
                            namespace=namespace,
                            label_selector=selector,
                            limit=PAGE,
                            _continue=following,
                            _request_timeout=30,
                        )
                        listing = page.to_dict()
                        uids |= {item["metadata"]["uid"] for item in listing["items"]}
                        following = listing["metadata"].get("continue") or ""
                except DynamicApiError as error:
                    log.warning("cannot list %s: %s", kind, error.summary())
                    continue  # half a list would drop what is there
                for key in store.keep_only(kind, namespace, uids):
                    worker.wake(key)


def _registry(store: Store, worker: Worker) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(id="login", errors=kopf.ErrorsMode.PERMANENT, registry=registry)(kopf.login_via_client)
    for group, version, plural, _ in WATCHED:

        async def listed(body: Mapping[str, Any], **_: object) -> None:
            store.put(_plain(body))

        async def event(event: Mapping[str, Any], **_: object) -> None:
            obj = _plain(event["object"])
            for key in store.drop(obj) if event["type"] == "DELETED" else store.put(obj):
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
    for group, _, plural, _ in WATCHED[1:]:
        settings.watching.label_selectors[(group, plural)] = OURS
    return settings


async def _api_client() -> client.ApiClient:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        await config.load_kube_config()
    return client.ApiClient()


async def _serve_health(worker: Worker, metrics: OperatorMetrics, listed: asyncio.Event, port: int) -> asyncio.Server:
    """/livez: the queue turns. /readyz: and every kind was listed. /metrics."""

    def answer_to(path: bytes) -> tuple[int, bytes]:
        stuck = time.monotonic() - worker.last_turn > QUEUE_STUCK_S
        match path:
            case b"/metrics":
                return 200, metrics.render()
            case b"/livez" | b"/readyz" if stuck:
                return 503, b"the queue stands still"
            case b"/readyz" if not listed.is_set():
                return 503, b"not everything is listed yet"
            case b"/livez" | b"/readyz":
                return 200, b"ok"
        return 404, b"not here"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split(b" ", 2)[1]
            status, body = answer_to(path)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, "0.0.0.0", port)
