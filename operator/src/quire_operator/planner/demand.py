"""How much there is to do, and how much one engine can do: both learned from what engines say of themselves.

    engines --look--> Memory --offered--> tokens in flight that are to be expected
                          '--capacity--> tokens in flight that one engine carries

A request in service takes a place for its service time, so a flow of requests needs *rate x service time* places (Little's
law): that much has to be in flight, however few engines there are. What waits is done once, not for ever: it counts for the
share of the horizon that it will be in service. Counting it whole asks for 45 engines where four suffice and one loads for five minutes.

Rule: all of this is arithmetic on `Memory`. No clock, no resource, no knowledge of what is decided from it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "EngineLoad",
    "Look",
    "Memory",
    "Moment",
    "Peak",
    "capacity",
    "carries",
    "mean_tokens",
    "offered",
    "remember",
]

FORGET_S = 120.0  # half-life of what is known of service times and sizes
SATURATED_KEPT = 60  # looks at engines that were full
FULL_QUANTILE = 0.9  # of those; a mean would collapse under long prompts


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """What one engine that is ready says of itself. Counters begin with its process."""

    name: str
    running: int
    waiting: int
    kv_usage: float  # 0..1; cached blocks that nobody refers to are free
    kv_tokens: int  # what the cache holds
    max_num_seqs: int
    preemptions: int
    finished: int  # requests
    ttft_p95_s: float | None = None  # seconds to the first token, of the last minute; None: none came

    @property
    def tokens(self) -> float:
        """Of what runs: prompts and answers so far, those that are shared counted once."""
        return self.kv_usage * self.kv_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at all engines of a model."""

    replicas: int  # that exist, loading ones among them
    ready: int
    engines: tuple[EngineLoad, ...]  # those of the ready ones that answered
    held: int = 0  # requests that wait in routers
    in_flight: int = 0  # requests that routers have at engines: work, also where an engine does not count it
    holds: bool | None = True  # routers hold requests for a model without an engine; None: they may, and do not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What happened from one look to the next."""

    at: float
    seconds: float
    arrived: int
    preempted: int
    running: int
    waiting: int
    kv_tokens: float  # in use


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most of a part of the time that is looked back on."""

    since: float
    tokens: float = 0.0  # offered
    kv_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    finished: int
    preemptions: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """All that outlives a look. A new one, after a restart, decides nothing rash: it never shrinks before it has looked back far enough."""

    since: float | None = None  # the first look
    at: float = 0.0  # the last look
    in_flight: int = 0
    waiting: int = 0  # in engines and in the router
    counters: Mapping[str, Counters] = field(default_factory=dict)  # by engine
    moments: tuple[Moment, ...] = ()  # of the stable window
    peaks: tuple[Peak, ...] = ()
    full: tuple[float, ...] = ()  # tokens that ran in an engine while others waited in it
    bound: float = 0.0  # places x tokens, or the KV cache: no engine carries more
    busy_s: float = 0.0  # decayed sums: request-seconds in service,
    done: float = 0.0  # requests finished,
    seen: float = 0.0  # requests seen in service,
    tokens: float = 0.0  # and their tokens
    last_work: float | None = None  # when anything was in flight, or no engine was ready for it
    trim: float = 1.0  # how much of its capacity an engine is given (trim.py)
    learned: float | None = None  # capacity that was known before a restart
    short_since: float | None = None  # since when fewer are ready than exist, and none came or was asked for
    loading_since: float | None = None  # the same of engines that were asked for; None also once this was measured
    replicas: int = 0  # that existed
    ready: int = 0
    cold_start_s: float | None = None  # measured: from being wanted to being ready

    @property
    def service_s(self) -> float | None:
        """How long a request is in service; None until a few were."""
        return self.busy_s / self.done if self.done >= 10 else None


def remember(memory: Memory, look: Look, now: float, keep_s: float) -> Memory:
    """`memory` after a look; moments older than `keep_s` are forgotten."""
    running = sum(e.running for e in look.engines)
    waiting = sum(e.waiting for e in look.engines) + look.held
    seconds = now - memory.at if memory.since is not None else 0.0
    finished = preempted = 0
    full = list(memory.full)
    for engine in look.engines:
        before = memory.counters.get(engine.name)
        if before is None:  # new, or not ready when it was looked for last: since when it counts, nobody knows
            continue
        if engine.finished >= before.finished:  # else it was started again
            finished += engine.finished - before.finished
            preempted += max(0, engine.preemptions - before.preemptions)
        if engine.waiting and before.waiting:  # twice in a row: it is full, and not between two steps
            full.append(engine.tokens)
    arrived = max(0, running + waiting - memory.in_flight + finished) if memory.since is not None else 0
    fade = 0.5 ** (seconds / FORGET_S)
    tokens = memory.tokens * fade + sum(e.tokens for e in look.engines)
    seen = memory.seen * fade + running
    moment = Moment(
        at=now,
        seconds=seconds,
        arrived=arrived,
        preempted=preempted,
        running=running,
        waiting=waiting,
        kv_tokens=sum(e.tokens for e in look.engines),
    )
    mean = tokens / seen if seen else 0.0
    loading_since, cold_start_s = _cold_start(memory, look, now)
    worked = running + waiting + look.in_flight + finished > 0
    return Memory(
        since=now if memory.since is None else memory.since,
        at=now,
        in_flight=running + waiting,
        waiting=waiting,
        counters={
            e.name: Counters(finished=e.finished, preemptions=e.preemptions, waiting=e.waiting) for e in look.engines
        },
        moments=(*(m for m in memory.moments if m.at > now - keep_s), moment),
        peaks=memory.peaks,
        full=tuple(full[-SATURATED_KEPT:]),
        bound=_bound(look.engines, mean) or memory.bound,
        busy_s=memory.busy_s * fade + running * seconds,
        done=memory.done * fade + finished,
        seen=seen,
        tokens=tokens,
        last_work=now if worked or not look.ready or memory.since is None else memory.last_work,
        trim=memory.trim,
        learned=memory.learned,
        short_since=_short_since(memory, look, now),
        replicas=look.replicas,
        ready=look.ready,
        loading_since=loading_since,
        cold_start_s=cold_start_s,
    )


def _short_since(memory: Memory, look: Look, now: float) -> float | None:
    if look.ready >= look.replicas:
        return None
    goes_on = look.ready > memory.ready or look.replicas > memory.replicas
    return now if goes_on or memory.short_since is None else memory.short_since


def _cold_start(memory: Memory, look: Look, now: float) -> tuple[float | None, float | None]:
    """Since when engines load, and the last cold start. Measured by the first to be ready after all were: those that were asked for later began later, nobody saw when."""
    if memory.loading_since is not None and look.ready > memory.ready:
        return None, now - memory.loading_since
    begins = memory.short_since is None and look.replicas > memory.replicas and look.ready < look.replicas
    since = now if begins else None if look.ready >= look.replicas else memory.loading_since
    return since, memory.cold_start_s


def _bound(engines: Iterable[EngineLoad], mean: float) -> float:
    """What the smallest engine can hold at all: as many sequences as it takes, and as many tokens as its cache has."""
    return min((min(e.kv_tokens, e.max_num_seqs * mean) for e in engines if mean), default=0.0)


def mean_tokens(memory: Memory) -> float:
    """Of a request in service."""
    return memory.tokens / memory.seen if memory.seen else 0.0


def capacity(memory: Memory) -> float | None:
    """Tokens in flight that one engine is to be given: of what it carries, as much as first tokens in time leave it."""
    most = carries(memory)
    return max(1.0, memory.trim * most) if most is not None else None


def carries(memory: Memory) -> float | None:
    """Tokens in flight that one engine carries, as far as was seen; None while nothing is known of it. Never trimmed: this is what
    is told, and what is learned from it after a restart."""
    known = sorted(memory.full)
    seen = known[min(len(known) - 1, int(FULL_QUANTILE * len(known)))] if known else memory.learned
    bounds = [value for value in (seen, memory.bound) if value]
    return max(1.0, min(bounds)) if bounds else None  # whatever a KV cache says of itself


def offered(memory: Memory, window_s: float, horizon_s: float) -> float:
    """Tokens that have to be in flight to serve what came in the window, and what waits, by the horizon."""
    recent = [m for m in memory.moments if m.at > memory.at - window_s and m.seconds > 0]
    seconds = sum(m.seconds for m in recent)
    running = recent[-1].running if recent else memory.in_flight - memory.waiting
    service_s = memory.service_s
    flow = sum(m.arrived for m in recent) / seconds * service_s if seconds and service_s else float(running)
    share = min(1.0, service_s / horizon_s) if service_s else 1.0
    mean = mean_tokens(memory)
    return (flow + share * memory.waiting) * mean
