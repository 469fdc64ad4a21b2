"""How many engines there should be, and why. One pure function; `quire simulate` and both backends call the same.

    look --remember--> memory --offered / capacity--> needed --bounds, patience--> desired

    up      at once: what came in the stable window (in a panic, in the short one), and what is coming if it goes on growing
            until an engine could be loaded; at least one more than are ready while they are saturated
    down    late: the most that was needed in the time looked back on, at most half at once, and never to fewer than hold
            the KV cache at its fullest
    zero    after a while without any request; one held request brings one engine back

Engines that load are supply: what is needed does not depend on how many there are, so waiting for weights never asks for
more. Every decision names the rule that made it (`ScaleReason`) and the numbers it was made of.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil

from quire_api.reasons import ScaleReason
from quire_operator.planner.demand import Look, Memory, Peak, capacity, mean_tokens, offered, remember
from quire_operator.planner.trim import slowest, trimmed

__all__ = ["Inputs", "Policy", "ScaleDecision", "decide"]

FULL_UP, FULL_DOWN = 0.85, 0.80  # of capacity: how full engines are to be when some come, and when some go
COLD_STARTS_BACK = 2  # looked back on before engines go: as long as it takes to regret it
GROWTH_MOST = 2.0  # a forecast is at most so many times what is so now
PARTS = 20  # of the time looked back on
SPAN = 4  # of these parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """spec.autoscaling, in numbers."""

    least: int
    most: int
    kv_usage: float = 0.75
    waiting_per_replica: float = 4.0
    ttft_p95_s: float | None = None  # None: no matter
    stable_s: float = 60.0
    panic_s: float = 10.0
    panic_factor: float = 2.0
    down_delay_s: float = 300.0
    idle_s: float | None = None  # None: never to zero
    cold_start_s: float = 60.0  # until it was measured

    @property
    def back_s(self) -> float:
        """The time that is looked back on before engines go."""
        return max(self.down_delay_s, COLD_STARTS_BACK * self.cold_start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a decision was made of."""

    replicas: int
    ready: int
    running: int
    waiting: int  # held ones among them
    kv_usage: float
    offered: float  # tokens in flight that are needed
    capacity: float | None  # of one engine
    ttft_p95_s: float | None  # of the slowest
    holds: bool | None  # requests for a model at zero, as in Look


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleDecision:
    desired: int
    reason: ScaleReason
    inputs: Inputs
    memory: Memory
    work: Mapping[str, int]  # requests in each engine: the one with the fewest goes first


def decide(look: Look, policy: Policy, memory: Memory, now: float) -> ScaleDecision:
    """`memory` is what the last decision left; a new one begins with nothing known."""
    memory = remember(memory, look, now, policy.stable_s)
    policy = replace(policy, cold_start_s=memory.cold_start_s or policy.cold_start_s)
    windows = memory.moments[-1].seconds / policy.stable_s
    memory = replace(memory, trim=trimmed(memory.trim, look, policy.ttft_p95_s, windows))
    each = capacity(memory)
    horizon_s = max(policy.stable_s, policy.cold_start_s)
    stable = offered(memory, policy.stable_s, horizon_s)
    panic = offered(memory, policy.panic_s, horizon_s)
    memory = replace(memory, peaks=_peaks(memory, stable, policy))
    inputs = _inputs(look, memory, stable, each)

    desired, reason = _decide(look, policy, memory, stable, panic, each)
    if desired > policy.most:
        desired, reason = policy.most, ScaleReason.AT_MAXIMUM
    if reason not in (ScaleReason.IDLE, ScaleReason.AT_ZERO) and desired < max(1, policy.least):
        desired, reason = max(1, policy.least), ScaleReason.AT_MINIMUM
    work = {engine.name: engine.running + engine.waiting for engine in look.engines}
    return ScaleDecision(desired=desired, reason=reason, inputs=inputs, memory=memory, work=work)


def _decide(
    look: Look, policy: Policy, memory: Memory, stable: float, panic: float, each: float | None
) -> tuple[int, ScaleReason]:
    if look.replicas == 0:
        return (1, ScaleReason.WOKEN) if look.held or look.holds is False else (0, ScaleReason.AT_ZERO)
    if look.ready and not look.engines:
        return look.replicas, ScaleReason.METRICS_UNAVAILABLE
    if _idle(look, policy, memory):
        return 0, ScaleReason.IDLE
    needed, reason = max(_needs(look, policy, memory, stable, panic, each), key=lambda need: need[0])
    if needed > look.replicas:
        return needed, reason
    return _down(look, policy, memory, each)


def _needs(
    look: Look, policy: Policy, memory: Memory, stable: float, panic: float, each: float | None
) -> Iterator[tuple[int, ScaleReason]]:
    """What each rule asks for; of two that ask for as many, the first gives the reason."""
    yield look.replicas, ScaleReason.STEADY
    if each:
        room = FULL_UP * each
        yield ceil(stable * memory.trim / room), ScaleReason.DEMAND
        yield ceil(stable / room), ScaleReason.TTFT
        if panic >= policy.panic_factor * each * look.replicas:
            yield ceil(panic / room), ScaleReason.PANIC
        yield ceil(_forecast(memory, stable, policy) / room), ScaleReason.GROWTH
    if (reason := _saturated(look, policy, memory)) is not None:
        yield look.ready + 1, reason


def _saturated(look: Look, policy: Policy, memory: Memory) -> ScaleReason | None:
    if not look.engines:
        return None
    if memory.waiting > policy.waiting_per_replica * look.ready and memory.waiting >= memory.moments[0].waiting:
        return ScaleReason.WAITING
    if sum(e.kv_usage for e in look.engines) / len(look.engines) >= policy.kv_usage:
        return ScaleReason.KV_CACHE
    if any(m.preempted for m in memory.moments if m.at > memory.at - policy.panic_s):
        return ScaleReason.PREEMPTIONS
    return None


def _forecast(memory: Memory, stable: float, policy: Policy) -> float:
    """What is offered by the time an engine asked for now could serve, if it goes on growing as it has.

    Growing means for longer than a moment: the slower of two spans counts, so that a step is not taken for a slope.
    """
    if len(memory.peaks) <= 2 * SPAN:
        return 0.0
    old, middle = memory.peaks[-1 - 2 * SPAN], memory.peaks[-1 - SPAN]
    growth = min(
        (middle.tokens - old.tokens) / (middle.since - old.since), (stable - middle.tokens) / (memory.at - middle.since)
    )
    return min(stable + max(0.0, growth) * policy.cold_start_s, GROWTH_MOST * stable)


def _idle(look: Look, policy: Policy, memory: Memory) -> bool:
    if policy.idle_s is None or not look.holds or len(look.engines) < look.ready:
        return False
    if memory.in_flight or memory.last_work is None:
        return False
    return look.ready > 0 and memory.at - memory.last_work >= policy.idle_s


def _down(look: Look, policy: Policy, memory: Memory, each: float | None) -> tuple[int, ScaleReason]:
    """As few as would have done for all of the time looked back on; at most half go at once."""
    if len(look.engines) < look.ready:  # some do not answer, and may be full
        return look.replicas, ScaleReason.METRICS_UNAVAILABLE
    # While engines load nobody is judged; one that never comes is no reason to keep the others.
    known_since = max((since for since in (memory.since, memory.short_since) if since is not None), default=memory.at)
    if memory.at - known_since < policy.back_s:
        return look.replicas, ScaleReason.STEADY
    tokens, kv_tokens = max(p.tokens for p in memory.peaks), max(p.kv_tokens for p in memory.peaks)
    holds = min((e.kv_tokens for e in look.engines), default=0) * policy.kv_usage
    if (tokens and not each) or (kv_tokens and not holds):
        return look.replicas, ScaleReason.STEADY
    enough = max(
        ceil(tokens / (FULL_DOWN * each)) if each else 0,
        ceil(kv_tokens / holds) if holds else 0,
        ceil(look.replicas / 2),
        1,
    )
    return (enough, ScaleReason.LESS_DEMAND) if enough < look.replicas else (look.replicas, ScaleReason.STEADY)


def _peaks(memory: Memory, stable: float, policy: Policy) -> tuple[Peak, ...]:
    """The time looked back on, in parts, with the most that was offered and in use in each."""
    part_s, moment = policy.back_s / PARTS, memory.moments[-1]
    peaks = [p for p in memory.peaks if p.since > memory.at - policy.back_s - part_s]
    if not peaks or memory.at - peaks[-1].since >= part_s:
        peaks.append(Peak(since=memory.at))
    tokens = max(stable, moment.running * mean_tokens(memory))
    last = peaks[-1]
    peaks[-1] = replace(last, tokens=max(last.tokens, tokens), kv_tokens=max(last.kv_tokens, moment.kv_tokens))
    return tuple(peaks)


def _inputs(look: Look, memory: Memory, tokens: float, each: float | None) -> Inputs:
    usage = [e.kv_usage for e in look.engines]
    return Inputs(
        replicas=look.replicas,
        ready=look.ready,
        running=memory.in_flight - memory.waiting,
        waiting=memory.waiting,
        kv_usage=sum(usage) / len(usage) if usage else 0.0,
        offered=tokens,
        capacity=each,
        ttft_p95_s=slowest(look),
        holds=look.holds,
    )
