"""A busy engine is never taken for a hung one, and a hung one is found out. No clock but ours."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api.footprint import ModelShape
from quire_engine.core.step import StepPlan, StepResult
from quire_engine.process.pulse import LEAST_S, PATIENCE, PERIOD_S, Pulse
from quire_engine.process.worker import LONG_STEP_S
from quire_engine.runtime.forecast import FORGETTING, LEAST_TOKENS, Forecaster, Pace, operations, operations_of

SHAPE = ModelShape(
    layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, head_dim=16, vocabulary=128, tied=True
)  # fmt: skip
seconds = st.floats(0.0, 1000.0)


def watched(pulse: Pulse, begin: float, end: float) -> bool:
    """Is it taken for hung at any second between?"""
    ticks = [begin + PERIOD_S * i for i in range(1, int((end - begin) / PERIOD_S) + 1)]
    return any(pulse.has_stopped(now) for now in ticks)


# ---------------------------------------------------------------------- pulse


@given(steps=st.lists(st.tuples(seconds, st.floats(1 / PATIENCE, 10.0)), max_size=20))
def test_steps_that_take_as_long_as_was_said_are_no_stall(steps: list[tuple[float, float]]) -> None:
    """Give or take: what was said may be a third of it."""
    now, pulse = 0.0, Pulse(0.0)
    for length, said in steps:
        pulse.announced(length * said * 1.001, now)
        assert not watched(pulse, now, now + length)
        now += length
        pulse.heard(now)


@given(idle=st.lists(st.floats(0.0, LEAST_S * 0.999), max_size=20))
def test_short_silences_need_no_word(idle: list[float]) -> None:
    now, pulse = 0.0, Pulse(0.0)
    for length in idle:
        assert not watched(pulse, now, now + length)
        now += length
        pulse.heard(now)


@given(expected=seconds)
def test_silence_beyond_what_was_said_is_a_stall(expected: float) -> None:
    pulse = Pulse(0.0)
    pulse.announced(expected, 0.0)
    patience = max(LEAST_S, PATIENCE * expected)

    assert not watched(pulse, 0.0, patience)
    assert watched(pulse, patience, patience + 2 * PERIOD_S)


def test_what_was_said_of_one_step_does_not_excuse_the_next() -> None:
    pulse = Pulse(0.0)
    pulse.announced(100.0, 0.0)
    assert not watched(pulse, 0.0, 50.0)
    pulse.heard(50.0)

    assert watched(pulse, 50.0, 50.0 + LEAST_S + 2 * PERIOD_S)


@given(away=st.floats(2 * PERIOD_S, 10_000.0), silent=st.floats(0.0, LEAST_S - 3 * PERIOD_S))
def test_time_that_the_watcher_was_away_is_nobodys_silence(away: float, silent: float) -> None:
    """The machine slept, or the event loop was held up: what the engine said meanwhile has not been read yet."""
    pulse, back = Pulse(0.0), silent + away
    assert not watched(pulse, 0.0, silent)

    assert not pulse.has_stopped(back)
    assert watched(pulse, back, back + LEAST_S + 2 * PERIOD_S)


# ---------------------------------------------------------------------- forecast


@pytest.mark.parametrize("tokens", [1, LEAST_TOKENS, 500])
def test_a_step_costs_its_weights_and_what_it_looks_at(tokens: int) -> None:
    alone, behind = operations(SHAPE, tokens, 0), operations(SHAPE, tokens, 1000)

    assert alone == 2.0 * SHAPE.parameters * max(tokens, LEAST_TOKENS)
    assert behind - alone == 4.0 * SHAPE.layers * SHAPE.heads * SHAPE.head_dim * 1000


def test_of_a_plan_each_chunk_looks_at_all_before_its_end() -> None:
    plan = StepPlan(starts=[0, 100], lengths=[10, 1], ids=[0, 1], slots=[0, 1], samples=[True, True])  # type: ignore[list-item]

    assert operations_of(SHAPE, plan) == operations(SHAPE, 11, 10 * 10 + 101)


@given(
    history=st.lists(st.tuples(st.floats(1.0, 1e9), st.floats(1e-6, 100.0)), min_size=1, max_size=40),
    cost=st.floats(1.0, 1e9),
)
def test_the_worst_pace_is_remembered_for_a_while(history: list[tuple[float, float]], cost: float) -> None:
    now = 0.0
    pace = Pace(lambda: now)
    for each, length in history:
        started = now
        now += length
        pace.learn(each, started)

    remembered = [(length / each) * FORGETTING**age for age, (each, length) in enumerate(reversed(history))]
    assert pace.forecast(cost) == pytest.approx(max(remembered) * cost, rel=1e-3)


def test_before_the_first_step_nothing_is_forecast() -> None:
    assert Pace().forecast(1e9) == 0.0


# ---------------------------------------------------------------------- both


@dataclass
class Machine:
    """Computes as long as it is told, by a clock of its own, one step after another."""

    lasts: Callable[[StepPlan], float]
    now: float = 0.0
    free_at: float = 0.0
    waits: list[tuple[float, float]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def launch(self, plan: StepPlan) -> "Running":
        self.free_at = max(self.free_at, self.now) + self.lasts(plan)
        return Running(self, self.free_at)


@dataclass
class Running:
    machine: Machine
    done_at: float

    def result(self) -> StepResult:
        begin, self.machine.now = self.machine.now, max(self.machine.now, self.done_at)
        self.machine.waits.append((begin, self.machine.now))
        return StepResult(tokens=[])


def plan_of(tokens: int, start: int) -> StepPlan:
    return StepPlan(ids=[0], slots=[0], starts=[start], lengths=[tokens], samples=[True])  # type: ignore[list-item]


def test_what_the_first_step_takes_is_no_measure_of_the_others() -> None:
    said: list[float] = []
    machine = Machine(lambda plan: 60.0 if plan.starts == [0] else 0.001)
    forecaster = Forecaster(machine, lambda plan: operations_of(SHAPE, plan), said.append, machine.clock)

    for at in range(3):
        forecaster.launch(plan_of(1, at)).result()

    assert max(said) < 0.01


@pytest.mark.parametrize("depth", [1, 2])
@given(
    pace=st.floats(1e-14, 1e-10),
    steps=st.lists(st.tuples(st.integers(1, 8192), st.integers(0, 100_000), st.floats(0.5, 1.4)), max_size=12),
)
def test_a_saturated_engine_is_not_called_hung_however_slow_it_is(
    depth: int, pace: float, steps: list[tuple[int, int, float]]
) -> None:
    """Its steps take from microseconds to minutes, and vary by nearly three; with a second one under way as well."""
    noise: dict[int, float] = {}
    machine = Machine(lambda plan: pace * operations_of(SHAPE, plan) * noise[id(plan)])
    pulse = Pulse(0.0)

    def announce(expected: float) -> None:
        if expected > LONG_STEP_S:
            pulse.announced(expected, machine.now)

    forecaster = Forecaster(machine, lambda plan: operations_of(SHAPE, plan), announce, machine.clock)
    warming = [plan_of(1, 0), plan_of(1, 1)]
    plans = [plan_of(tokens, start) for tokens, start, _ in steps]
    noise.update(zip(map(id, [*warming, *plans]), [100.0, 0.5, *(each for _, _, each in steps)], strict=True))
    for plan in warming:  # before anybody watches
        forecaster.launch(plan).result()
    pulse.heard(machine.now)
    pulse.has_stopped(machine.now)
    under_way = []
    for following in [*plans, None, None]:
        if following is not None:
            under_way.append(forecaster.launch(following))
        if under_way and (len(under_way) >= depth or following is None):
            begin = machine.now
            under_way.pop(0).result()
            assert not watched(pulse, begin, machine.now)
            pulse.has_stopped(machine.now)
        pulse.heard(machine.now)
