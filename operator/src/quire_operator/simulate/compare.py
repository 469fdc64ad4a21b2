"""Ours beside HPA on the same load. HPA gets a family of targets, of which the best is chosen afterwards: nobody has one so good."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quire_operator.planner.autoscale import Policy
from quire_operator.simulate.fleet import Outcome, Step, simulate
from quire_operator.simulate.loads import Load
from quire_operator.simulate.policies import builtin, hpa, kv_use, queue_length

__all__ = ["KV_TARGETS", "QUEUE_TARGETS", "Comparison", "Score", "compare", "reversals"]

QUEUE_TARGETS = (1.0, 2.0, 4.0, 8.0)  # waiting requests an engine
KV_TARGETS = (
    0.4,
    0.5,
    0.6,
    0.7,
    0.75,
    0.8,
    0.9,
)  # of the KV use that a full engine has: an absolute one may be out of reach
SAME_S = 0.1  # queue times that differ less are the same
LEAST, MOST = 1, 16


@dataclass(frozen=True, slots=True)
class Score:
    queue_p95_s: float
    engine_hours: float

    @classmethod
    def of(cls, outcome: Outcome) -> "Score":
        return cls(round(outcome.queue_quantile(0.95), 3), round(outcome.engine_hours, 4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    kind: str
    requests: int
    cold_start_s: float
    ours: Score
    reversals: int  # the most within a stable window
    queue: dict[float, Score]  # by target
    kv_use: dict[float, Score]

    def wins(self, others: dict[float, Score]) -> bool:
        """No target reaches our queue time with as few engines."""
        reach = [s.engine_hours for s in others.values() if s.queue_p95_s <= self.ours.queue_p95_s + SAME_S]
        return not reach or self.ours.engine_hours < min(reach)

    def beats(self, other: Score) -> bool:
        """Both at once: no longer queue, fewer engines."""
        return self.ours.queue_p95_s <= other.queue_p95_s + SAME_S and self.ours.engine_hours < other.engine_hours


def compare(
    load: Load, queue_targets: Sequence[float] = QUEUE_TARGETS, kv_targets: Sequence[float] = KV_TARGETS
) -> Comparison:
    policy = Policy(least=LEAST, most=MOST, cold_start_s=load.engine.cold_start_s)
    ours = simulate(load, builtin(policy))
    full = _full_kv_use(load)
    return Comparison(
        kind=load.kind,
        requests=len(load.arrivals),
        cold_start_s=round(load.engine.cold_start_s, 1),
        ours=Score.of(ours),
        reversals=reversals(ours.steps, policy.stable_s),
        queue={t: Score.of(simulate(load, hpa(queue_length, t, LEAST, MOST))) for t in queue_targets},
        kv_use={t: Score.of(simulate(load, hpa(kv_use, t * full, LEAST, MOST))) for t in kv_targets},
    )


def reversals(steps: Sequence[Step], window_s: float) -> int:
    """The most changes of direction within a window."""
    moves = [(new.at, new.replicas > old.replicas) for old, new in pairwise(steps) if new.replicas != old.replicas]
    turned = [at for (_, before), (at, after) in pairwise(moves) if before != after]
    return max((sum(at <= other < at + window_s for other in turned) for at in turned), default=0)


def _full_kv_use(load: Load) -> float:
    """The KV use of an engine whose batch is full: below 1 where there are too few places to fill the cache."""
    mean = sum(a.prompt + a.output for a in load.arrivals) / max(1, len(load.arrivals))
    return min(1.0, load.engine.max_num_seqs * mean / load.engine.kv_tokens)
