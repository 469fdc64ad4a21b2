"""The scheduler: whatever the mix, chunking, sharing, preemption and pipelining, each request gets its own tokens."""

import random

import pytest
from fakes.runner import VOCABULARY, FakeRunner, continuation
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from quire_engine.core.blocks import BlockPool, Prefix
from quire_engine.core.memory import Memory
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.core.sequence import TRANSITIONS, Sequence, Status
from quire_engine.core.step import Events, FinishReason, StepPlan, StepResult
from quire_engine.engine import Engine
from quire_engine.errors import RequestRejected

TOKEN_BYTES = [b"%d," % token for token in range(VOCABULARY)]


def make(
    *,
    blocks: int = 64,
    block_size: int = 4,
    seqs: int = 8,
    budget: int = 16,
    length: int = 64,
    long: int = 1000,
    host: int = 0,
    caching: bool = True,
    by_priority: bool = False,
) -> Scheduler:
    limits = Limits(
        max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length, long_prefill_tokens=long,
        by_priority=by_priority,
    )  # fmt: skip
    memory = Memory(BlockPool(blocks, block_size), BlockPool(host, block_size), prefix_caching=caching, swap_cost=0.5)
    return Scheduler(memory, limits, TOKEN_BYTES)


def request(
    number: int,
    prompt: int | tuple[int, ...] = 3,
    tokens: int = 5,
    *,
    priority: int = 0,
    leader: int | None = None,
    **params: object,
) -> Request:
    ids = prompt if isinstance(prompt, tuple) else tuple((number * 7 + i) % VOCABULARY for i in range(prompt))
    token_params = TokenParams(max_tokens=tokens, **params)  # type: ignore[arg-type]
    return Request(
        id=RequestId(number), prompt=ids, params=token_params, priority=priority,
        leader=None if leader is None else RequestId(leader),
    )  # fmt: skip


class Tally:
    """What came of each request."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, FinishReason] = {}
        self.stop: dict[int, bytes | None] = {}
        self.cached: dict[int, int] = {}
        self.scores: dict[int, list[int]] = {}
        self.order: list[int] = []  # of first tokens

    def take(self, events: Events) -> None:
        for i, (request_id, token) in enumerate(zip(events.ids, events.tokens, strict=True)):
            assert request_id not in self.finish, "an event after the end"
            if request_id not in self.tokens:
                self.tokens[request_id] = []
                self.order.append(request_id)
            if token >= 0:
                self.tokens[request_id].append(token)
            if i in events.finished:
                self.finish[request_id] = events.finished[i].reason
                self.stop[request_id] = events.finished[i].stop
        for request_id, scores in events.prompt_logprobs.items():
            self.scores.setdefault(request_id, []).extend(score.token for score in scores)
        for request_id, found in events.cached.items():
            assert request_id not in self.cached
            self.cached[request_id] = found


def drain(engine: Engine, scheduler: Scheduler, tally: Tally | None = None) -> Tally:
    tally = tally or Tally()
    for _ in range(5000):
        if not engine.has_work:
            return tally
        tally.take(engine.step())
        scheduler.check()
    raise AssertionError("no progress")


@st.composite
def situations(draw: st.DrawFn) -> tuple[dict[str, int], list[Request], int]:
    """A small engine, and requests that fit it one by one, but not together; many begin alike."""
    block_size = draw(st.sampled_from([1, 2, 4]))
    blocks = draw(st.integers(3, 24))
    seqs = draw(st.integers(1, 6))
    budget = draw(st.integers(seqs, 24))
    shape = {
        "blocks": blocks,
        "block_size": block_size,
        "seqs": seqs,
        "budget": budget,
        "length": blocks * block_size,
        "long": draw(st.integers(1, budget)),
        "host": draw(st.sampled_from([0, 0, 5, 100])),
        "caching": draw(st.booleans()),
        "by_priority": draw(st.booleans()),
    }
    requests: list[Request] = []
    for number in range(draw(st.integers(1, 10))):
        length = draw(st.integers(1, shape["length"] - 1))
        kind = draw(st.integers(0, 1))  # one of two texts that requests begin with
        prompt = tuple((kind * 7 + i) % VOCABULARY for i in range(length))
        leader = None
        if requests and draw(st.booleans()):
            leader = draw(st.sampled_from(requests))
            leader = next((r for r in requests if r.id == leader.leader), leader)
            prompt = leader.prompt
        scored = draw(st.sampled_from([None, None, None, 0]))
        requests.append(
            request(
                number, prompt, draw(st.integers(1, 20)), priority=draw(st.integers(0, 2)), prompt_logprobs=scored,
                leader=None if leader is None else leader.id,
            )
        )  # fmt: skip
    return shape, requests, draw(st.sampled_from([1, 2, 3]))


@settings(max_examples=400, deadline=None)
@given(situations())
def test_each_request_gets_the_tokens_it_would_get_alone(situation: tuple[dict[str, int], list[Request], int]) -> None:
    shape, requests, depth = situation
    scheduler = make(**shape)  # type: ignore[arg-type]
    engine = Engine(scheduler, FakeRunner(shape["block_size"], shape["budget"]), depth)
    for each in requests:
        engine.add(each)

    tally = drain(engine, scheduler)

    for each in requests:
        allowed = min(each.params.max_tokens, shape["length"] - len(each.prompt))
        assert tally.tokens[each.id] == continuation(each.prompt, allowed)
        assert tally.finish[each.id] is FinishReason.LENGTH
        if each.params.prompt_logprobs is not None:
            assert tally.scores.get(each.id, []) == list(each.prompt[1:])
    assert scheduler.load.kv_usage == 0


class Traffic(RuleBasedStateMachine):
    """Requests come and leave at any moment, while steps are under way."""

    @initialize(
        blocks=st.integers(4, 12),
        budget=st.integers(3, 12),
        depth=st.sampled_from([1, 2]),
        host=st.sampled_from([0, 8]),
        by_priority=st.booleans(),
    )
    def start(self, blocks: int, budget: int, depth: int, host: int, by_priority: bool) -> None:
        self.scheduler = make(
            blocks=blocks, block_size=2, seqs=3, budget=budget, length=blocks * 2, host=host, long=2,
            by_priority=by_priority,
        )  # fmt: skip
        self.engine = Engine(self.scheduler, FakeRunner(2, budget), depth)
        self.capacity = blocks * 2
        self.open: dict[int, Request] = {}
        self.tally = Tally()
        self.count = 0

    @rule(share=st.floats(0.01, 0.99), tokens=st.integers(1, 12), kind=st.integers(0, 1), priority=st.integers(0, 1))
    def arrive(self, share: float, tokens: int, kind: int, priority: int) -> None:
        self.count += 1
        length = max(1, int(share * (self.capacity - 1)))
        prompt = tuple((kind + i) % VOCABULARY for i in range(length))
        each = request(self.count, prompt, tokens, priority=priority)
        self.engine.add(each)
        self.open[each.id] = each

    @precondition(lambda self: self.open)
    @rule(data=st.data(), tokens=st.integers(1, 12))
    def follow(self, data: st.DataObject, tokens: int) -> None:
        self.count += 1
        leader = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        each = request(self.count, leader.prompt, tokens, leader=leader.id)
        self.engine.add(each)
        self.open[each.id] = each

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.open)))
        self.tally.take(self.engine.abort(RequestId(gone)))
        assert self.tally.finish[gone] is FinishReason.ABORT
        assert self.engine.abort(RequestId(gone)) == Events()
        del self.open[gone]

    @rule()
    def step(self) -> None:
        events = self.engine.step()
        self.tally.take(events)
        for request_id in events.ids:
            each = self.open[request_id]  # KeyError: an event after the end
            if request_id in self.tally.finish:
                del self.open[request_id]
                done = self.tally.tokens[request_id]
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


def chunks(plan: StepPlan) -> list[tuple[int, int, int, bool]]:
    return list(zip(plan.ids, plan.starts, plan.lengths, plan.samples, strict=True))


def test_a_long_prompt_is_computed_in_chunks_beside_running_requests() -> None:
    scheduler = make(budget=8)
    scheduler.add(request(1, prompt=2))
    first = scheduler.schedule()
    scheduler.commit(first, StepResult(tokens=[1]))
    scheduler.add(request(2, prompt=20))

    plan = scheduler.schedule()

    assert chunks(plan) == [(1, 2, 1, True), (2, 0, 7, False)]


def test_short_prompts_pass_a_long_one_which_still_moves_on() -> None:
    scheduler = make(blocks=400, seqs=32, budget=16, length=1200, long=4)
    engine = Engine(scheduler, runner := FakeRunner(4, 16))
    scheduler.add(request(0, prompt=1000, tokens=2))
    engine.step()
    for number in range(1, 21):
        scheduler.add(request(number, prompt=4, tokens=2))

    tally, moved = Tally(), []
    for _ in range(10):
        plan = scheduler.schedule()
        moved.append(dict(zip(plan.ids, plan.lengths, strict=True)).get(0, 0))
        tally.take(scheduler.commit(plan, runner.launch(plan).result()))

    assert set(tally.finish) == set(range(1, 21))
    assert min(moved) >= 4
    assert drain(engine, scheduler, tally).tokens[0] == continuation(request(0, prompt=1000).prompt, 2)


def test_a_long_prompt_takes_all_when_it_is_alone() -> None:
    scheduler = make(blocks=400, budget=16, length=1200, long=4)
    runner = FakeRunner(4, 16)
    scheduler.add(request(0, prompt=160, tokens=1))

    drain(Engine(scheduler, runner), scheduler)

    assert runner.steps == 10


def test_the_one_that_loses_least_yields_its_blocks_and_goes_on_before_newer_ones() -> None:
    prompts = {1: 3, 2: 4, 3: 10, 4: 1}
    scheduler = make(blocks=11, block_size=2, budget=32, length=22, caching=False)
    for number in (1, 2, 3):
        scheduler.add(request(number, prompts[number], tokens=6))
    engine, tally = Engine(scheduler, FakeRunner(2, 32)), Tally()
    while not scheduler.load.preemptions:
        tally.take(engine.step())
    beside = set(engine.step().ids)
    scheduler.add(request(4, prompt=1, tokens=6))

    drain(engine, scheduler, tally)

    assert beside == {1, 3}
    assert tally.order[-1] == 4
    assert tally.tokens[2] == continuation(request(2, prompts[2]).prompt, 6)


def test_what_a_preempted_request_had_is_found_again() -> None:
    """Its blocks stay findable until somebody needs them."""
    scheduler = make(blocks=12, block_size=2, budget=64, length=24)
    runner = FakeRunner(2, 64)
    for number in (1, 2):
        scheduler.add(request(number, prompt=9, tokens=10))

    drain(Engine(scheduler, runner), scheduler)

    assert scheduler.load.preemptions
    assert runner.computed < 2 * (9 + 10) + 9


def test_with_room_on_the_host_blocks_are_swapped_and_not_computed_again() -> None:
    scheduler = make(blocks=12, block_size=2, budget=64, length=24, host=12, caching=False)
    runner = FakeRunner(2, 64)
    for number in (1, 2):
        scheduler.add(request(number, prompt=9, tokens=10))

    tally = drain(Engine(scheduler, runner), scheduler)

    assert scheduler.load.preemptions
    assert runner.swapped >= 5
    assert runner.computed == 2 * (9 + 10 - 1)
    assert tally.tokens[2] == continuation(request(2, prompt=9).prompt, 10)


def test_waiting_requests_are_admitted_in_order_of_arrival() -> None:
    """A short one behind a long one does not overtake, else the long one might wait for ever."""
    scheduler = make(blocks=4, block_size=4, length=16)
    for number, prompt in ((1, 8), (2, 12), (3, 1)):
        scheduler.add(request(number, prompt))

    plan = scheduler.schedule()

    assert plan.ids == [1]


def test_under_the_priority_policy_the_lower_number_goes_first_and_yields_last() -> None:
    scheduler = make(blocks=6, block_size=2, seqs=2, length=12, by_priority=True, caching=False)
    for number, priority in ((1, 5), (2, 0), (3, 1)):
        scheduler.add(request(number, prompt=3, tokens=4, priority=priority))
    engine, tally = Engine(scheduler, FakeRunner(2, 16)), Tally()
    tally.take(engine.step())

    drain(engine, scheduler, tally)

    assert tally.order == [2, 3, 1]


def test_without_the_policy_priorities_mean_nothing() -> None:
    scheduler = make(seqs=1)
    for number, priority in ((1, 5), (2, 0)):
        scheduler.add(request(number, priority=priority))

    assert drain(Engine(scheduler, FakeRunner(4, 16)), scheduler).order == [1, 2]


def test_a_known_beginning_is_not_computed_again() -> None:
    prompt = tuple(range(30))
    scheduler, runner = make(budget=64), FakeRunner(4, 64)
    engine = Engine(scheduler, runner)
    scheduler.add(request(1, prompt, tokens=1))
    drain(engine, scheduler)
    cold = runner.computed
    scheduler.add(request(2, (*prompt[:20], 40, 41, 42), tokens=1))

    tally = drain(engine, scheduler)

    assert (cold, runner.computed - cold) == (30, 3)
    assert tally.cached == {2: 20}
    assert tally.tokens[2] == continuation((*prompt[:20], 40, 41, 42), 1)
    assert (scheduler.load.prefix_queries, scheduler.load.prefix_hits) == (53, 20)


def test_a_prompt_that_is_known_whole_computes_one_token_in_a_copy_of_its_last_block() -> None:
    prompt = tuple(range(16))
    scheduler, runner = make(budget=64), FakeRunner(4, 64)
    engine = Engine(scheduler, runner)
    for number in (1, 2):
        scheduler.add(request(number, prompt, tokens=3))
        tally = drain(engine, scheduler)

    assert runner.copied == 1
    assert tally.cached == {2: 15}
    assert tally.tokens[2] == continuation(prompt, 3)


@pytest.mark.parametrize("caching", [True, False])
def test_followers_share_the_prompt_of_their_leader(caching: bool) -> None:
    prompt = tuple(range(18))
    scheduler, runner = make(budget=64, caching=caching), FakeRunner(4, 64)
    scheduler.add(request(0, prompt, tokens=4))
    for number in (1, 2, 3):
        scheduler.add(request(number, prompt, tokens=4, leader=0))

    tally = drain(Engine(scheduler, runner), scheduler)

    assert runner.computed == (18 + 3) + 3 * (1 + 3)
    assert runner.copied == 3  # the last block is half full: each writes on in a copy of its own
    assert all(tally.tokens[n] == continuation(prompt, 4) for n in range(4))


def test_long_prompts_that_begin_alike_and_come_together_share_what_the_first_computes() -> None:
    scheduler = make(blocks=2000, seqs=16, budget=64, length=1200, long=16)
    runner = FakeRunner(4, 64)
    for number in range(8):
        scheduler.add(request(number, (*range(40), *range(10), number), tokens=1))

    drain(Engine(scheduler, runner), scheduler)

    assert runner.computed < 51 + 8 * (3 + 4)


def test_a_prefix_hit_is_compared_at_once_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    equal = Prefix.__eq__

    def counted(mine: Prefix, theirs: object) -> bool:
        nonlocal steps
        walked: Prefix | None = mine
        other = theirs
        while walked is not other and walked is not None and isinstance(other, Prefix):
            walked, other, steps = walked.parent, other.parent, steps + 1  # type: ignore[assignment]
        return equal(mine, theirs)

    monkeypatch.setattr(Prefix, "__eq__", counted)
    scheduler = make(blocks=4000, budget=4096, length=4000)
    engine = Engine(scheduler, Occupancy(4))
    prompt = tuple(i % VOCABULARY for i in range(2000))
    for number in range(4):
        scheduler.add(request(number, prompt, tokens=2))
        while engine.has_work:
            engine.step()

    assert scheduler.load.prefix_hits == 3 * 1999
    assert steps < 8 * 500  # a few for each block of each request; walking to the root would be 500 times that


def test_what_a_failed_launch_planned_is_not_found_afterwards() -> None:
    class Failing(FakeRunner):
        def launch(self, plan: StepPlan):  # type: ignore[no-untyped-def]
            if self.steps == 1:
                raise KeyboardInterrupt
            return super().launch(plan)

    scheduler = make(budget=64, length=64)
    engine = Engine(scheduler, Failing(4, 64))
    scheduler.add(request(1, tuple(range(20)), tokens=1))
    engine.step()
    scheduler.add(request(2, tuple(range(40)), tokens=3))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    scheduler.abort(RequestId(2))

    scheduler.check()
    scheduler.add(request(3, tuple(range(40)), tokens=3))

    runner = FakeRunner(4, 64)
    assert scheduler.schedule().starts == [20]
    assert runner.steps == 0


def test_nothing_is_found_of_a_step_that_was_broken_off_while_it_was_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when tokens are counted as computed, and nothing was launched."""
    scheduler = make(budget=64)
    engine, plan = Engine(scheduler, FakeRunner(4, 64)), scheduler.schedule
    scheduler.add(request(1, tuple(range(40)), tokens=3))

    def broken_off() -> StepPlan:
        plan()
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "schedule", broken_off)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.abort(RequestId(1))
    scheduler.check()
    monkeypatch.undo()
    scheduler.add(request(2, tuple(range(40)), tokens=3))

    assert scheduler.schedule().starts == [0]


def test_a_request_that_was_refused_is_asked_again_when_another_has_computed_its_prompt() -> None:
    """It needs fewer blocks then, though no more are free."""
    prompt = tuple(range(40))
    scheduler, tally = make(blocks=20, budget=64), Tally()
    engine = Engine(scheduler, FakeRunner(4, 64))
    for each in (request(1, 3, tokens=30), request(2, prompt, tokens=12), request(3, prompt, tokens=3)):
        scheduler.add(each)

    for _ in range(2):
        tally.take(engine.step())

    assert tally.order == [1, 2, 3]
    assert tally.cached[3] == 39
    drain(engine, scheduler, tally)
    assert tally.tokens[3] == continuation(prompt, 3)


def test_a_request_whose_logits_are_no_numbers_leaves_nothing_to_find() -> None:
    scheduler = make()
    scheduler.add(request(1, tuple(range(12)), tokens=3))
    scheduler.commit(scheduler.schedule(), StepResult(tokens=[-1]))
    scheduler.add(request(2, tuple(range(12)), tokens=3))

    assert scheduler.schedule().starts == [0]


class Occupancy:
    """A runner that computes nothing, and counts the places of running requests: those held, and those filled."""

    def __init__(self, block_size: int) -> None:
        self.held, self.filled = 0, 0
        self._block_size = block_size
        self._num_blocks: dict[int, int] = {}  # by slot

    def launch(self, plan: StepPlan) -> "Occupancy":
        self._num_blocks.update({placed.slot: len(placed.blocks) for placed in plan.placements})
        for slot, index, _ in plan.new_blocks:
            self._num_blocks[slot] = index + 1
        self.held += sum(self._num_blocks[slot] * self._block_size for slot in plan.slots)
        self.filled += sum(plan.starts) + sum(plan.lengths)
        self._tokens = [1] * sum(plan.samples)
        return self

    def result(self) -> StepResult:
        return StepResult(tokens=self._tokens)


def test_little_of_the_kv_cache_is_held_for_nothing() -> None:
    """Lengths as people chat: log-normal, 220 tokens in and 190 out on average. What is held and empty: 4 % at most."""
    rng = random.Random(0)
    scheduler = make(blocks=2000, block_size=16, seqs=256, budget=2048, length=4096)
    engine = Engine(scheduler, runner := Occupancy(16))
    for number in range(400):
        prompt, output = (min(1500, 1 + int(rng.lognormvariate(mean, 0.9))) for mean in (5.0, 4.85))
        scheduler.add(request(number, prompt, output))

    while engine.has_work:
        engine.step()

    assert 1 - runner.filled / runner.held <= 0.04, f"{1 - runner.filled / runner.held:.2%} are empty"


def test_followers_of_a_leader_that_leaves_go_on_alone() -> None:
    prompt = tuple(range(18))
    scheduler = make(budget=8)
    scheduler.add(request(0, prompt, tokens=4))
    scheduler.add(request(1, prompt, tokens=4, leader=0))
    engine = Engine(scheduler, FakeRunner(4, 8))
    engine.step()
    scheduler.abort(RequestId(0))

    tally = drain(engine, scheduler)

    assert tally.tokens == {1: continuation(prompt, 4)}


def test_a_stop_token_ends_the_request() -> None:
    prompt = (1, 2, 3)
    second = continuation(prompt, 2)[1]
    scheduler = make()
    scheduler.add(request(1, prompt, tokens=10, stop_token_ids=frozenset({second})))

    tally = drain(Engine(scheduler, FakeRunner(4, 16)), scheduler)

    assert tally.tokens[1] == continuation(prompt, 2)
    assert tally.finish[1] is FinishReason.STOP


@pytest.mark.parametrize("depth", [1, 2])
def test_a_stop_string_across_token_borders_ends_the_request(depth: int) -> None:
    prompt = (1, 2, 3)
    text = b"".join(TOKEN_BYTES[token] for token in continuation(prompt, 4))
    stop = text[1:-1]  # begins within the first token and ends within the fourth
    scheduler = make()
    scheduler.add(request(1, prompt, tokens=20, stop=(stop,)))

    tally = drain(Engine(scheduler, FakeRunner(4, 16), depth), scheduler)

    assert len(tally.tokens[1]) == 4
    assert (tally.finish[1], tally.stop[1]) == (FinishReason.STOP, stop)


def test_a_stop_string_counts_only_once_min_tokens_are_there() -> None:
    prompt = (1, 2, 3)
    first = TOKEN_BYTES[continuation(prompt, 1)[0]]
    scheduler = make()
    scheduler.add(request(1, prompt, tokens=6, stop=(first,), min_tokens=2))

    tally = drain(Engine(scheduler, FakeRunner(4, 16)), scheduler)

    assert len(tally.tokens[1]) > 1


def test_logits_that_are_no_numbers_end_one_request_and_no_other() -> None:
    scheduler = make()
    for number in (1, 2):
        scheduler.add(request(number, tokens=1))

    events = scheduler.commit(scheduler.schedule(), StepResult(tokens=[-1, 4]))

    assert events.finished[0].reason is FinishReason.ERROR
    assert "not a number" in (events.finished[0].message or "")
    assert (events.ids, events.tokens) == ([1, 2], [-1, 4])
    scheduler.check()


def test_one_step_ahead_does_not_compute_beyond_the_last_token() -> None:
    """Pipelined, a request of N tokens takes N steps and no more: its end by length is known before it comes."""
    scheduler, runner = make(), FakeRunner(4, 16)
    scheduler.add(request(1, prompt=3, tokens=6))

    drain(Engine(scheduler, runner, depth=2), scheduler)

    assert runner.steps == 6


@pytest.mark.parametrize(
    ("prompt", "tokens", "says"),
    [
        (0, 1, "the prompt is empty"),
        (64, 1, "maximum context length is 64"),
        (30, 30, "the KV cache holds 40"),
        ((1, VOCABULARY), 1, "not in the vocabulary, whose ids are 0 to 49"),
        ((1, -1), 1, "not in the vocabulary"),
    ],
)
def test_a_request_that_can_never_run_is_rejected(prompt: int | tuple[int, ...], tokens: int, says: str) -> None:
    scheduler = make(blocks=10, block_size=4, length=64)

    with pytest.raises(RequestRejected, match=says):
        scheduler.add(request(1, prompt, tokens))

    assert not scheduler.has_work


def test_no_forbidden_transition_goes_unnoticed() -> None:
    for status in Status:
        for target in set(Status) - TRANSITIONS[status]:
            sequence = Sequence(request(1), 10, (0, 1), status)
            with pytest.raises(AssertionError, match="cannot become"):
                sequence.become(target)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_least_that_a_step_takes_is_said_when_it_is_waited_for(depth: int) -> None:
    """Not when it is launched: what is measured meanwhile is another."""
    scheduler = make()
    engine = Engine(scheduler, FakeRunner(4, 16), depth, least_seconds=lambda plan: float(plan.num_tokens))
    engine.add(request(1, 24, 3))
    seen = []

    while engine.has_work:
        engine.step()
        seen.append(engine.last_least_s)

    assert [least for least in seen if least] == [16, 8, 1, 1]
    assert seen[: depth - 1] == [0] * (depth - 1)
