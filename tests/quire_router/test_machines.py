"""The small machines without a clock: circuit, health, hold, buckets, the last minute."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire_router.breaker import FAILURES, LONGEST_PAUSE_S, PAUSE_S, Breaker, Circuit
from quire_router.health import Health, State
from quire_router.hold import COMMENT_EVERY_S, OPEN_AFTER_S, Due, Entry, Hold, Wait
from quire_router.limits import Allowance, Bucket, Limits
from quire_router.rates import Minute


class Breaking(RuleBasedStateMachine):
    """Any order of requests and pauses, beside a plain record of what the rules say."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker, self.now, self.in_a_row, self.trials = Breaker(), 0.0, 0, 0

    @rule(seconds=st.floats(0.01, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.allows(self.now))
    @rule(end=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def request(self, end: str) -> None:
        self.breaker = self.breaker.begin(self.now)
        if self.breaker.tried is not None:
            assert not self.breaker.allows(self.now), "half open lets one in at a time"
        if end == "failed":
            self.breaker, self.in_a_row = self.breaker.failed(self.now), self.in_a_row + 1
        elif end == "succeeded":
            self.breaker, self.in_a_row = self.breaker.succeeded(), 0
        else:
            self.breaker = self.breaker.abandoned()

    @invariant()
    def opens_only_after_failures_in_a_row(self) -> None:
        assert (self.breaker.circuit(self.now) is Circuit.CLOSED) == (self.in_a_row < FAILURES)

    @invariant()
    def always_tries_again(self) -> None:
        assert PAUSE_S <= self.breaker.pause_s <= LONGEST_PAUSE_S
        assert self.breaker.allows(self.now + LONGEST_PAUSE_S)


TestBreaking = Breaking.TestCase
TestBreaking.settings = settings(max_examples=30, deadline=None)


def test_half_open_lets_another_in_before_a_long_answer_has_ended() -> None:
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker = breaker.failed(0.0)

    trial = breaker.begin(PAUSE_S)

    assert not trial.allows(1.5 * PAUSE_S)
    assert trial.allows(2 * PAUSE_S)
    assert not trial.begin(2 * PAUSE_S).allows(2.5 * PAUSE_S)


def test_each_failed_trial_doubles_the_pause() -> None:
    breaker, now = Breaker(), 0.0
    for _ in range(FAILURES):
        breaker = breaker.failed(now)

    pauses = []
    for _ in range(7):
        now += breaker.pause_s
        breaker = breaker.begin(now).failed(now)
        pauses.append(breaker.pause_s)

    assert pauses == [2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(
    ("status", "text", "state"),
    [
        (200, "ok", State.READY),
        (404, "no such path", State.READY),
        (503, "the model is being loaded", State.LOADING),
        (503, "the engine is draining", State.DRAINING),
        (503, "the engine has ended: killed", State.LOADING),
    ],
)
def test_what_an_answer_to_readyz_says(status: int, text: str, state: State) -> None:
    assert Health().missed(1.0).answered(status, text) == Health(state=state)


def test_silence_is_measured_from_the_first_missed_answer() -> None:
    health = Health(state=State.READY).missed(5.0).missed(6.0)

    assert (health.state, health.silent_s(7.5)) == (State.STALE, 2.5)


@given(st.integers(0, 5), st.lists(st.booleans(), max_size=60))
def test_a_hold_is_bounded_and_wakes_once_for_all_who_wait(most: int, moves: list[bool]) -> None:
    hold, held = Hold(), 0

    for enters in moves:
        if enters:
            entry = hold.enter(most)
            assert entry is (Entry.FULL if held >= most else Entry.HELD if held else Entry.FIRST)
            held += entry is not Entry.FULL
        elif held:
            hold.leave()
            held -= 1
        assert hold.held == held <= most


@given(st.floats(0, 1e6), st.floats(0, 100), st.booleans(), st.lists(st.floats(0.001, 20), max_size=30))
def test_a_wait_ends_in_time_and_only_streams_hear_of_it(
    since: float, bound: float, streams: bool, steps: list[float]
) -> None:
    wait, now = Wait(since=since, until=since + bound, streams=streams), since

    for step in steps:
        due = wait.due(now)
        assert (due is Due.GIVE_UP) == (now >= since + bound)
        if due is Due.COMMENT:
            assert streams
            assert now >= since + OPEN_AFTER_S
            wait.comments += 1
        elif due is Due.NOTHING:
            assert wait.next_at() > now
        now += step

    assert wait.comments <= max(0.0, (now - since - OPEN_AFTER_S) / COMMENT_EVERY_S + 1)


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=80))
def test_a_bucket_gives_no_more_than_its_rate_and_a_full_one(per_minute: int, asks: list[tuple[float, int]]) -> None:
    bucket, now, given_ = Bucket.full(per_minute, 0.0), 0.0, 0

    for pause, cost in asks:
        now += pause
        if cost <= per_minute and bucket.wait_s(cost, now) == 0:
            bucket.take(cost, now)
            given_ += cost
        assert given_ <= per_minute + per_minute * now / 60 + 1e-6


@given(st.integers(1, 1000), st.integers(1, 5000), st.floats(0, 1000))
def test_who_waits_as_long_as_told_is_let_in(per_minute: int, cost: int, debt: float) -> None:
    bucket = Bucket.full(per_minute, 0.0)
    bucket.take(debt, 0.0)

    wait = bucket.wait_s(cost, 0.0)

    assert bucket.wait_s(cost, wait + 1e-6) <= 1e-6


def test_a_request_that_cost_more_than_it_looked_like_makes_the_next_one_wait() -> None:
    allowance = Allowance(Limits(tokens_per_minute=600), 0.0)

    assert allowance.take(100, 0.0) is None
    allowance.settle(800, 0.0)
    refused = allowance.take(10, 0.0)

    assert refused == ("tokens", 31.0)
    assert allowance.take(10, 31.5) is None


def test_a_minute_forgets_what_is_older_and_knows_its_quantiles() -> None:
    minute = Minute()
    minute.add(0.0, tokens=600, failed=True, first_s=9.0, token_s=None)
    for i in range(100):
        minute.add(30.0, tokens=6, failed=False, first_s=i / 100, token_s=0.01)

    summary = minute.summary(61.0)

    assert (summary["requests"], summary["failed"], summary["tokens"], summary["tokens_per_s"]) == (100, 0, 600, 10.0)
    assert summary["first_token_s"] == {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    assert minute.summary(200.0)["first_token_s"] is None
