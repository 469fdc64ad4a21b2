"""`quire operator`: its parts put together, around the lease.

    port --> lease --taken--> kinds --> informer --> store --> worker --> backend --> API server
                |                                                            |
                '--------------- held? before every write -------------------'

A standby has its port and waits for the lease: it is ready, else a rolling update would wait for it for ever, and it asks
for nothing else. Rule: nothing that can fail while the API server is away stands before the lease, so that an outage
restarts an operator once at most.
"""

import asyncio
import gc
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from kubernetes.aio import client, config

from quire_api.errors import InvalidInput
from quire_operator.backends.census import Census, census
from quire_operator.backends.client import WritingClient
from quire_operator.backends.cluster import ClusterBackend
from quire_operator.backends.fetches import Fetches
from quire_operator.backends.pods import Asked
from quire_operator.backends.refusals import Refusals
from quire_operator.backends.store import Store
from quire_operator.handlers import inform, served_kinds
from quire_operator.health import serve
from quire_operator.keeper import Keeper
from quire_operator.lease import Lease
from quire_operator.listing import Lister
from quire_operator.metrics import OperatorMetrics
from quire_operator.planner.workloads import GROUPS
from quire_operator.reconcile import ResourceKey, reconcile
from quire_operator.router_state import NoRouter, Routers, addresses_of
from quire_operator.scrape import Scraper
from quire_operator.settings import LeaseName, OperatorSettings
from quire_operator.worker import Worker

__all__ = ["OperateOptions", "operate"]

GC_AFTER = 50_000  # new objects; after 700, as usual, a fifth of the time went to looking through what stays
BEGIN_MOST_S = 60.0  # else whoever holds the lease and cannot begin would keep others from it
TURN_MOST_S = 45.0
TURNS_AT_ONCE = 8  # a turn is mostly waiting for the API server: a new resource is thirteen writes, one after the other
QUEUE_STUCK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OperateOptions:
    namespaces: list[str]  # to watch; none: all of them
    port: int
    lease: LeaseName | None  # None: there is no other operator


async def operate(settings: OperatorSettings, options: OperateOptions) -> None:
    """Until cancelled; whatever cannot be recovered from ends it, and Kubernetes starts it again."""
    gc.set_threshold(GC_AFTER)
    keeper = _keeper(options.lease) if options.lease is not None else None
    operator = _Operator(settings, options, lambda: keeper is None or keeper.held)
    serving = await serve(options.port, operator.answer)
    try:
        if keeper is None:
            await operator.work()
        else:
            await keeper.take()
            await _until_one_ends(keeper.keep(), operator.work())
    finally:
        serving.close()
        if keeper is not None:
            await keeper.release()  # here nothing is written any more


def _keeper(name: LeaseName) -> Keeper:
    identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"

    @asynccontextmanager
    async def connect() -> AsyncIterator[Lease]:
        async with await _api_client() as api:
            yield Lease(api, name, identity)

    return Keeper(connect)


class _Operator:
    """What it is made of, and what its port says of it."""

    def __init__(self, settings: OperatorSettings, options: OperateOptions, leads: Callable[[], bool]) -> None:
        self._settings = settings
        self._options = options
        self._leads = leads
        self._metrics = OperatorMetrics()
        self._store = Store()
        self._listed = asyncio.Event()
        self._worker: Worker | None = None  # before that it stands by

    async def work(self) -> None:
        """What only one operator at a time may do."""
        async with await _api_client() as api:
            await self._work(api)

    async def _work(self, api: client.ApiClient) -> None:
        namespaces = self._options.namespaces
        dynamic = WritingClient(api, self._leads, self._metrics.wrote)
        async with asyncio.timeout(BEGIN_MOST_S):
            await dynamic
            kinds = await served_kinds(dynamic)
        grouped = any(kind == GROUPS for *_, kind in kinds)
        settings = self._settings.model_copy(update={"leader_worker_sets": grouped})
        backend = ClusterBackend(dynamic, self._store, settings, self._metrics.corrected)

        async def turn(key: ResourceKey) -> float | None:
            with self._metrics.reconcile():
                return await reconcile(key, backend)

        worker = self._worker = Worker(turn, TURN_MOST_S, self._metrics.waited, TURNS_AT_ONCE)
        named = self._settings.routers
        routers = Routers(lambda: addresses_of(named), lambda: scraper.look_now()) if named else None
        scraper = Scraper(backend.scrape_targets, routers or NoRouter(), worker.wake)
        backend.decision = scraper.decision
        refusals = Refusals(dynamic, backend.podless_jobs, worker.wake)
        fetches = Fetches(backend.fetching, worker.wake)
        backend.asked = Asked(refusal=refusals.of, progress=fetches.of)
        lister = Lister(dynamic, self._store, kinds, namespaces)

        async def plan() -> None:
            await lister.first()  # as long as it takes: each of its requests has its time, and a large cluster has many
            self._listed.set()
            await _until_one_ends(
                worker.run(),
                scraper.run(),
                refusals.run(),
                fetches.run(),
                lister.again(worker.wake),
                *([routers.run()] if routers is not None else []),
            )

        await _until_one_ends(inform(self._store, worker, kinds, namespaces), plan())

    def answer(self, path: bytes) -> tuple[int, bytes]:
        """/livez: the queue turns. /readyz: and every kind was listed, or it stands by. /metrics."""
        worker = self._worker
        stuck = worker is not None and time.monotonic() - worker.last_turn > QUEUE_STUCK_S
        match path:
            case b"/metrics":
                late = worker.late() if worker is not None else []
                counted = census(self._store) if worker is not None else Census()  # else one would count as many twice
                return 200, self._metrics.render(leads=self._leads(), late=late, census=counted)
            case b"/livez" | b"/readyz" if stuck:
                return 503, b"the queue stands still"
            case b"/livez" | b"/readyz" if worker is None:
                return 200, b"standing by"
            case b"/readyz" if not self._listed.is_set():
                return 503, b"not everything is listed yet"
            case b"/livez" | b"/readyz":
                return 200, b"ok"
        return 404, b"not here"


async def _until_one_ends(*parts: Coroutine[Any, Any, None]) -> None:
    """Then all of them end; what ended the first is raised."""
    tasks = {asyncio.create_task(part) for part in parts}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _api_client() -> client.ApiClient:
    try:
        config.load_incluster_config()
    except config.ConfigException:
        try:
            await config.load_kube_config()
        except config.ConfigException as error:
            raise InvalidInput(
                [
                    f"no cluster: not in a pod, and no kubeconfig ({error}): set KUBECONFIG, or use `quire up` without a cluster"
                ]
            ) from None
    return client.ApiClient()
