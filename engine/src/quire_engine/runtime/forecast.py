"""How long a step will take: whoever waits for it can tell a long step from a hung one.

A step's time is its operations times a pace, seconds an operation, of which the worst seen lately counts: a forecast
that is too long does no harm, one that is too short would call a busy engine dead.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from quire_api.footprint import ModelShape
from quire_engine.core.step import StepPlan, StepResult
from quire_engine.engine import Launched, Runner

__all__ = ["SLOWER", "Forecaster", "Pace", "operations", "operations_of"]

LEAST_TOKENS = 8  # so many cost no more than one: the weights have to be read all the same
SLOWER = 8.0  # times, on a GPU and at the most, are the kernels whose rows get the same bits in any batch; no more than a guess
FORGETTING = 0.97  # of the worst pace, a step

Clock = Callable[[], float]


def operations(shape: ModelShape, tokens: int, looked_at: int) -> float:
    """Products of the weights, and of attention with what lies before each token, `looked_at` in all."""
    attention = 2.0 * shape.layers * shape.heads * shape.per_pair * looked_at
    return 2.0 * shape.parameters * max(tokens, LEAST_TOKENS) + attention


def operations_of(shape: ModelShape, plan: StepPlan, slower: float = 1) -> float:
    """`slower` is what kernels whose rows get the same bits in any batch take."""
    looked_at = sum(length * (start + length) for start, length in zip(plan.starts, plan.lengths, strict=True))
    return operations(shape, plan.num_tokens, looked_at) * (slower if plan.batch_invariant else 1)


class Pace:
    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._worst = 0.0  # seconds an operation; 0: nothing is known

    def forecast(self, cost: float) -> float:
        return self._worst * cost

    def learn(self, cost: float, started: float) -> None:
        self._worst = max(self._worst * FORGETTING, (self._clock() - started) / cost)

    def now(self) -> float:
        return self._clock()

    @contextmanager
    def measured(self, cost: float) -> Iterator[None]:
        started = self._clock()
        yield
        self.learn(cost, started)


class Forecaster:
    """A runner that says, before a step is launched and before one is waited for, how many seconds all that is under way
    should take: any news of the engine, such as the report of the step before, ends what was said before it.

    Nothing is learned of the very first step, which records, compiles and touches memory: a forecast from its pace would
    hide a hang for long. What warms up is two steps (build.py)."""

    def __init__(
        self,
        runner: Runner,
        cost: Callable[[StepPlan], float],
        announce: Callable[[float], None],
        clock: Clock = time.monotonic,
    ) -> None:
        self._runner = runner
        self._cost = cost
        self._announce = announce
        self._pace = Pace(clock)
        self._is_warm = False
        self._under_way = 0.0  # costs of what was launched, and has not come back

    def launch(self, plan: StepPlan) -> Launched:
        cost, started = self._cost(plan), self._pace.now()
        self._announce(self._pace.forecast(self._under_way + cost))
        launched = self._runner.launch(plan)
        self._under_way += cost
        return _Timed(self, launched, cost, started)

    def wait(self, launched: Launched, cost: float, started: float) -> StepResult:
        self._announce(self._pace.forecast(self._under_way))
        try:
            result = launched.result()
        finally:
            self._under_way -= cost
        if self._is_warm:
            self._pace.learn(cost, started)
        self._is_warm = True
        return result


class _Timed:
    def __init__(self, forecaster: Forecaster, launched: Launched, cost: float, started: float) -> None:
        self._forecaster = forecaster
        self._launched = launched
        self._cost = cost
        self._started = started

    def result(self) -> StepResult:
        return self._forecaster.wait(self._launched, self._cost, self._started)
