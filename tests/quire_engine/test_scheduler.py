"""The scheduler: whatever the mix, chunking, preemption and pipelining, each request gets its own tokens."""

import pytest
from fakes.runner import VOCABULARY, FakeRunner, continuation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire_engine.core.blocks import BlockPool
from quire_engine.core.request import Request, RequestId, SamplingParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.core.sequence import TRANSITIONS, Sequence, Status
from quire_engine.core.step import FinishReason, StepResult, TokenEvent
from quire_engine.engine import Engine
from quire_engine.errors import RequestRejected

TOKEN_BYTES = [b"%d," % token for token in range(VOCABULARY)]


def make(*, blocks: int = 64, block_size: int = 4, seqs: int = 8, budget: int = 16, length: int = 64) -> Scheduler:
    limits = Limits(max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length)
    return Scheduler(BlockPool(blocks, block_size), limits, TOKEN_BYTES)


def request(number: int, prompt: int | tuple[int, ...] = 3, tokens: int = 5, **params: object) -> Request:
    ids = prompt if isinstance(prompt, tuple) else tuple((number * 7 + i) % VOCABULARY for i in range(prompt))
    return Request(id=RequestId(number), prompt=ids, params=SamplingParams(max_tokens=tokens, **params))  # type: ignore[arg-type]


def drain(engine: Engine, scheduler: Scheduler, steps: int = 2000) -> dict[int, list[TokenEvent]]:
    events: dict[int, list[TokenEvent]] = {}
    while engine.has_work:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
        scheduler.check()
        steps -= 1
        assert steps, "no progress"
    return events


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, int], list[Request], int]:
    """A small engine, and requests that fit it one by one, but not together."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(3, 24))
    seqs = draw(st.integers(1, 6))
    shape = {
        "blocks": blocks,
        "block_size": block_size,
        "seqs": seqs,
        "budget": draw(st.integers(seqs, 24)),
        "length": blocks * block_size,
    }
    requests = []
    for number in range(draw(st.integers(1, 10))):
        prompt = draw(st.integers(1, shape["length"] - 1))
        requests.append(request(number, prompt, draw(st.integers(1, 20))))
    return shape, requests, draw(st.sampled_from([1, 2, 3]))


@settings(max_examples=300, deadline=None)
@given(situations())
def test_each_request_gets_the_tokens_it_would_get_alone(situation: tuple[dict[str, int], list[Request], int]) -> None:
    shape, requests, depth = situation
    scheduler = make(**shape)
    engine = Engine(scheduler, FakeRunner(shape["block_size"], shape["budget"]), depth)
    for each in requests:
        engine.add(each)

    events = drain(engine, scheduler)

    for each in requests:
        allowed = min(each.params.max_tokens, shape["length"] - len(each.prompt))
        assert [e.token for e in events[each.id]] == continuation(each.prompt, allowed)
        assert [e.finish for e in events[each.id]] == [None] * (allowed - 1) + [FinishReason.LENGTH]
    assert scheduler.load.kv_usage == 0


class Traffic(RuleBasedStateMachine):
    """Requests come and leave at any moment, while steps are under way."""

    @initialize(blocks=st.integers(4, 12), budget=st.integers(3, 12), depth=st.sampled_from([1, 2]))
    def start(self, blocks: int, budget: int, depth: int) -> None:
        self.scheduler = make(blocks=blocks, block_size=2, seqs=3, budget=budget, length=blocks * 2)
        self.engine = Engine(self.scheduler, FakeRunner(2, budget), depth)
        self.capacity = blocks * 2
        self.open: dict[int, Request] = {}
        self.tokens: dict[int, list[int]] = {}
        self.count = 0

    @rule(share=st.floats(0.01, 0.99), tokens=st.integers(1, 12))
    def arrive(self, share: float, tokens: int) -> None:
        self.count += 1
        each = request(self.count, max(1, int(share * (self.capacity - 1))), tokens)
        self.engine.add(each)
        self.open[each.id], self.tokens[each.id] = each, []

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.open)))
        events = self.engine.abort(RequestId(gone))
        assert [event.finish for event in events] == [FinishReason.ABORT]
        assert self.engine.abort(RequestId(gone)) == []
        del self.open[gone]

    @rule()
    def step(self) -> None:
        for event in self.engine.step():
            each = self.open[event.request_id]  # KeyError: an event after the end
            assert event.token is not None
            self.tokens[event.request_id].append(event.token)
            if event.finish:
                del self.open[event.request_id]
                done = self.tokens[event.request_id]
                assert done == continuation(each.prompt, len(done))

    @invariant()
    def books_balance(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            for _ in range(2000):
                if not self.engine.has_work:
                    break
                self.step()
            assert not self.open
            assert self.scheduler.load.kv_usage == 0


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_long_prompt_is_computed_in_chunks_beside_running_requests() -> None:
    scheduler = make(budget=8)
    scheduler.add(request(1, prompt=2))
    first = scheduler.schedule()
    scheduler.commit(first, StepResult(tokens=(1,)))
    scheduler.add(request(2, prompt=20))

    plan = scheduler.schedule()

    assert [(c.request_id, c.start, c.length, c.samples) for c in plan.chunks] == [(1, 2, 1, True), (2, 0, 7, False)]


def test_the_youngest_yields_its_blocks_and_goes_on_first() -> None:
    scheduler = make(blocks=5, block_size=2, budget=16, length=10)
    for number in (1, 2):
        scheduler.add(request(number, prompt=3, tokens=4))
    engine = Engine(scheduler, FakeRunner(2, 16))
    while not scheduler.load.preemptions:
        engine.step()
    preempted = scheduler.load
    scheduler.add(request(3, prompt=1, tokens=4))

    events = drain(engine, scheduler)

    assert (preempted.running, preempted.waiting) == (1, 1)
    assert list(events).index(2) < list(events).index(3)
    assert [e.token for e in events[2]] == continuation(request(2, prompt=3).prompt, 4)[-len(events[2]) :]


def test_waiting_requests_are_admitted_in_order_of_arrival() -> None:
    """A short one behind a long one does not overtake, else the long one might wait for ever."""
    scheduler = make(blocks=4, block_size=4, length=16)
    for number, prompt in ((1, 8), (2, 12), (3, 1)):
        scheduler.add(request(number, prompt))

    plan = scheduler.schedule()

    assert [chunk.request_id for chunk in plan.chunks] == [1]


def test_a_stop_token_ends_the_request() -> None:
    prompt = (1, 2, 3)
    second = continuation(prompt, 2)[1]
    scheduler = make()
    scheduler.add(request(1, prompt, tokens=10, stop_token_ids=frozenset({second})))

    events = drain(Engine(scheduler, FakeRunner(4, 16)), scheduler)

    assert [e.token for e in events[1]] == continuation(prompt, 2)
    assert events[1][-1].finish is FinishReason.STOP


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stop_string_across_token_borders_ends_the_request(depth: int) -> None:
    prompt = (1, 2, 3)
    text = b"".join(TOKEN_BYTES[token] for token in continuation(prompt, 4))
    stop = text[1:-1]  # begins within the first token and ends within the fourth
    scheduler = make()
    scheduler.add(request(1, prompt, tokens=20, stop=(stop,)))

    events = drain(Engine(scheduler, FakeRunner(4, 16), depth), scheduler)

    assert len(events[1]) == 4
    assert (events[1][-1].finish, events[1][-1].stop) == (FinishReason.STOP, stop)


def test_one_step_ahead_does_not_compute_beyond_the_last_token() -> None:
    """Pipelined, a request of N tokens takes N steps and no more: its end by length is known before it comes."""
    scheduler, runner = make(), FakeRunner(4, 16)
    scheduler.add(request(1, prompt=3, tokens=6))

    drain(Engine(scheduler, runner, depth=2), scheduler)

    assert runner.steps == 6


@pytest.mark.parametrize(
    ("prompt", "tokens", "says"),
    [(0, 1, "the prompt is empty"), (64, 1, "at most 64"), (30, 30, "the KV cache holds 40")],
)
def test_a_request_that_can_never_run_is_rejected(prompt: int, tokens: int, says: str) -> None:
    scheduler = make(blocks=10, block_size=4, length=64)

    with pytest.raises(RequestRejected, match=says):
        scheduler.add(request(1, prompt, tokens))

    assert not scheduler.has_work


def test_no_forbidden_transition_goes_unnoticed() -> None:
    for status in Status:
        for target in set(Status) - TRANSITIONS[status]:
            sequence = Sequence(request(1), 10)
            sequence.status = status
            with pytest.raises(AssertionError, match="cannot become"):
                sequence.become(target)


def test_the_pool_refuses_to_free_twice_and_to_give_what_it_has_not() -> None:
    pool = BlockPool(2, 4)
    taken = pool.allocate(1)
    pool.free(taken)

    with pytest.raises(AssertionError, match="freed twice"):
        pool.free(taken)
    with pytest.raises(AssertionError, match="3 blocks asked"):
        pool.allocate(3)


def test_check_finds_a_leak_and_a_double_owner() -> None:
    pool = BlockPool(4, 4)
    held = pool.allocate(2)

    pool.check([held])
    with pytest.raises(AssertionError):
        pool.check([held[:1]])
    with pytest.raises(AssertionError):
        pool.check([held, held[:1]])
