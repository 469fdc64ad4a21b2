"""Engines in simulated time: a request goes to the least loaded engine that is ready, and stays there; nothing ready, it is held.

Every engine that exists costs, loading and draining ones too. One that goes finishes what it has.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from quire_operator.planner.demand import EngineLoad, Look
from quire_operator.simulate.loads import Arrival, EngineModel, Load

__all__ = ["Outcome", "Scaler", "Step", "simulate"]

MINUTE_S = 60.0

Scaler = Callable[[Look, float], tuple[int, str]]  # a look and the time -> engines, and why


@dataclass(frozen=True, slots=True)
class Step:
    at: float
    replicas: int
    ready: int
    waiting: int
    reason: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    queue_s: list[float]  # of every request
    engine_s: float  # of all engines that existed
    steps: list[Step]

    def queue_quantile(self, q: float) -> float:
        ordered = sorted(self.queue_s)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0

    @property
    def engine_hours(self) -> float:
        return self.engine_s / 3600


@dataclass(slots=True, eq=False)
class _Engine:
    name: str
    model: EngineModel
    since: float
    ready: bool = False
    draining: bool = False
    running: int = 0
    reserved: int = 0  # tokens of the KV cache
    finished: int = 0
    waiting: deque[Arrival] = field(default_factory=deque)
    first_tokens: deque[tuple[float, float]] = field(
        default_factory=deque
    )  # of the last minute: when, and how long it took

    @property
    def inside(self) -> int:
        return self.running + len(self.waiting)

    def load(self, now: float) -> EngineLoad:
        while self.first_tokens and now - self.first_tokens[0][0] > MINUTE_S:
            self.first_tokens.popleft()
        took = sorted(seconds for at, seconds in self.first_tokens if at <= now)
        return EngineLoad(
            name=self.name,
            running=self.running,
            waiting=len(self.waiting),
            kv_usage=self.reserved / self.model.kv_tokens,
            kv_tokens=self.model.kv_tokens,
            max_num_seqs=self.model.max_num_seqs,
            preemptions=0,
            finished=self.finished,
            ttft_p95_s=took[min(len(took) - 1, int(0.95 * len(took)))] if took else None,
        )


class _Fleet:
    def __init__(self, load: Load) -> None:
        self.model = load.engine
        self.engines: list[_Engine] = []
        self.held: deque[Arrival] = deque()
        self.queue_s: list[float] = []
        self.engine_s = 0.0
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0

    def later(self, at: float, what: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self.events, (at, self._number, what))

    @property
    def wanted(self) -> list[_Engine]:
        return [engine for engine in self.engines if not engine.draining]

    def scale(self, count: int, now: float, cold_start_s: float) -> None:
        there = self.wanted
        for _ in range(count - len(there)):
            engine = _Engine(f"{self._number}", self.model, now)
            self.engines.append(engine)
            self.later(now + cold_start_s, lambda at, engine=engine: self._ready(engine, at))  # type: ignore[misc]
        leaving = sorted(there, key=lambda e: (e.ready, e.inside, -e.since))[: max(0, len(there) - count)]
        for engine in leaving:
            engine.draining = True
            self._leave_if_empty(engine, now)

    def take(self, request: Arrival, now: float) -> None:
        ready = [e for e in self.engines if e.ready and not e.draining]
        if not ready:
            self.held.append(request)
            return
        engine = min(ready, key=lambda e: e.running + len(e.waiting))
        engine.waiting.append(request)
        self._admit(engine, now)

    def _ready(self, engine: _Engine, now: float) -> None:
        engine.ready = True
        while self.held and not engine.draining:
            self.take(self.held.popleft(), now)

    def _admit(self, engine: _Engine, now: float) -> None:
        while engine.waiting and engine.running < self.model.max_num_seqs:
            request = engine.waiting[0]
            needed = request.prompt + request.output
            if engine.reserved + needed > self.model.kv_tokens:
                return
            engine.waiting.popleft()
            engine.running += 1
            engine.reserved += needed
            self.queue_s.append(now - request.at)
            first = self.model.prefill_s(request.prompt, engine.running)
            engine.first_tokens.append((now + first, now + first - request.at))
            seconds = self.model.service_s(request.prompt, request.output, engine.running)

            def finish(at: float, needed: int = needed) -> None:
                engine.running -= 1
                engine.finished += 1
                engine.reserved -= needed
                self._admit(engine, at)
                self._leave_if_empty(engine, at)

            self.later(now + seconds, finish)

    def _leave_if_empty(self, engine: _Engine, now: float) -> None:
        if engine.draining and not engine.inside and engine in self.engines:
            self.engines.remove(engine)
            self.engine_s += now - engine.since

    def look(self, now: float) -> Look:
        wanted = self.wanted
        ready = [engine for engine in wanted if engine.ready]
        return Look(
            replicas=len(wanted),
            ready=len(ready),
            engines=tuple(engine.load(now) for engine in ready),
            held=len(self.held),
        )


def simulate(load: Load, scaler: Scaler, every_s: float = 5.0) -> Outcome:
    """The load from its beginning until the last request was admitted; engines are paid for until the load's end."""
    fleet, steps = _Fleet(load), []
    fleet.scale(load.first, 0.0, 0.0)

    def tick(now: float) -> None:
        look = fleet.look(now)
        count, reason = scaler(look, now)
        steps.append(Step(now, count, look.ready, sum(e.waiting for e in look.engines) + look.held, reason))
        fleet.scale(count, now, load.engine.cold_start_s)
        if now + every_s < load.seconds:
            fleet.later(now + every_s, tick)

    fleet.later(0.0, tick)
    arrivals = iter(load.arrivals)
    request = next(arrivals, None)
    while fleet.events or request is not None:
        if request is not None and (not fleet.events or request.at < fleet.events[0][0]):
            fleet.take(request, request.at)
            request = next(arrivals, None)
        else:
            at, _, what = heapq.heappop(fleet.events)
            what(at)
    fleet.engine_s += sum(max(0.0, load.seconds - engine.since) for engine in fleet.engines)
    return Outcome(queue_s=fleet.queue_s, engine_s=fleet.engine_s, steps=steps)
