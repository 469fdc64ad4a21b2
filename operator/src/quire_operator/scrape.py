"""Looks at engines and has the autoscaler decide: the shell around `planner/autoscale.py`.

    every few seconds, and at once when a request is held, for each resource in mode Builtin:
    GET /load of each ready engine, demand at the routers --> Look --decide--> decision --> wake(key)

Backends say what to look at (`targets`), routers what they hold (`Routing`), and `plan` reads the decision from the snapshot.
Knows nothing of how replicas are made. A decision is only kept here; what must outlive the operator stands in the status.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from quire_api.deployment import LLMDeployment
from quire_api.reasons import ScaleReason
from quire_api.status import DeploymentStatus
from quire_operator.asking import ask
from quire_operator.planner.autoscale import ScaleDecision, decide
from quire_operator.planner.demand import EngineLoad, Look
from quire_operator.planner.scaling import policy_of, recall
from quire_operator.reconcile import ResourceKey

__all__ = ["Demanded", "Routing", "Scraper", "Target"]

log = logging.getLogger("quire.scrape")

EVERY_S = 5.0
TIMEOUT_S = 2.0
STALE_AFTER = 3  # looks that an engine may miss and still be judged by what it said last
AT_ONCE = 128  # connections


@dataclass(frozen=True, slots=True, kw_only=True)
class Demanded:
    """Requests of one resource, in all routers."""

    held: int
    in_flight: int  # at engines


class Routing(Protocol):
    """What routers say (`router_state.py`)."""

    @property
    def holds(self) -> bool | None:
        """There are routers, which hold requests for a model at zero. None: there should be, and none answers."""
        ...

    def demand(self, key: ResourceKey) -> Demanded: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to look at for one resource."""

    key: ResourceKey
    deployment: LLMDeployment
    status: DeploymentStatus | None
    replicas: int  # that exist or are about to
    ready: Mapping[str, str]  # engine -> where /load is: host:port, or the path of a socket


@dataclass(slots=True)
class _Known:
    """Of one resource, between two looks."""

    decision: ScaleDecision | None = None
    last: dict[str, tuple[int, EngineLoad]] = field(default_factory=dict)  # engine -> looks missed since, what it said


class Scraper:
    def __init__(
        self,
        targets: Callable[[], Iterable[Target]],
        routing: Routing,
        wake: Callable[[ResourceKey], None],
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._targets = targets
        self._routing = routing
        self._wake = wake
        self._every_s = every_s
        self._clock = clock
        self._known: dict[ResourceKey, _Known] = {}
        self._now = asyncio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)

    def decision(self, key: ResourceKey) -> ScaleDecision | None:
        known = self._known.get(key)
        return known.decision if known is not None else None

    def look_now(self) -> None:
        """A request is held: do not wait for the next time."""
        self._now.set()

    async def run(self) -> None:
        """For ever."""
        while True:
            started = self._clock()
            targets = list(self._targets())
            try:
                await self.look(targets)
            except Exception:  # what one look stumbles over must not end all
                log.exception("cannot look at the engines")
            pause = min([self._every_s, *(policy_of(t.deployment).panic_s / 2 for t in targets)])
            try:
                async with asyncio.timeout(max(0.1, started + pause - self._clock())):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()

    async def look(self, targets: Iterable[Target]) -> None:
        """Once, at all of them; who is not among them any more is forgotten."""
        targets = list(targets)
        self._known = {t.key: self._known.get(t.key) or _Known() for t in targets}
        await asyncio.gather(*(self._look_at(target) for target in targets))

    async def _look_at(self, target: Target) -> None:
        known = self._known[target.key]
        loads = await asyncio.gather(*(self._ask(name, where) for name, where in target.ready.items()))
        known.last = _remember(known.last, dict(zip(target.ready, loads, strict=True)))
        demanded = self._routing.demand(target.key)
        look = Look(
            replicas=target.replicas,
            ready=len(target.ready),
            engines=tuple(load for _, load in known.last.values()),
            held=demanded.held,
            in_flight=demanded.in_flight,
            holds=self._routing.holds,
        )
        before = known.decision
        memory = before.memory if before is not None else recall(target.status)
        known.decision = decision = decide(look, policy_of(target.deployment), memory, self._clock())
        if decision.desired != target.replicas or before is None or _sees(before) != _sees(decision):
            self._wake(target.key)

    async def _ask(self, name: str, where: str) -> EngineLoad | None:
        async with self._room:
            return _load(name, await ask(where, "/load", TIMEOUT_S))


def _sees(decision: ScaleDecision) -> tuple[bool, bool | None]:
    """What the condition says of how it was decided."""
    return decision.reason is not ScaleReason.METRICS_UNAVAILABLE, decision.inputs.holds


def _remember(
    before: Mapping[str, tuple[int, EngineLoad]], answers: Mapping[str, EngineLoad | None]
) -> dict[str, tuple[int, EngineLoad]]:
    """The last word of each engine that is ready, unless it is too old."""
    said: dict[str, tuple[int, EngineLoad]] = {}
    for name, load in answers.items():
        if load is not None:
            said[name] = (0, load)
        elif name in before and before[name][0] + 1 < STALE_AFTER:
            said[name] = (before[name][0] + 1, before[name][1])
    return said


def _load(name: str, answer: Any) -> EngineLoad | None:
    """What /load said; None when it is not what we asked for."""
    try:
        late = answer.get("ttft_p95_s")
        return EngineLoad(
            name=name,
            running=int(answer["running"]),
            waiting=int(answer["waiting"]),
            kv_usage=float(answer["kv_usage"]),
            kv_tokens=int(answer["kv_tokens"]),
            max_num_seqs=int(answer["max_num_seqs"]),
            preemptions=int(answer["preemptions"]),
            finished=int(answer["finished"]),
            ttft_p95_s=float(late) if late is not None else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
