"""Decides what each step computes. Pure: it never sees a tensor, a clock or a socket.

One rule: every sequence has `num_computed`, which catches up with its number of tokens under a budget of
tokens a step. Whole prompts, chunks of prompts, what is left of a cached one and single tokens are the same thing.

    schedule():  1. every running sequence that lacks one token gets it, in order of rank;
                    who needs a block and finds none preempts another (memory.py)
                 2. prompts share the rest of the budget, short ones first, but a long one always moves on:
                    those that run, then, if nobody was preempted, those that wait, by rank,
                    each with all blocks its known tokens need, so that a started prompt always ends
    commit():    the sampled tokens take their places; what is done leaves

The sequence of the lowest rank can always proceed: a request that could not fit alone is refused by `add`. Calls may
be pipelined: `schedule` again before the `commit` of the step before (see Sequence.num_in_flight).
"""

from bisect import insort
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from quire_engine.core.memory import Memory
from quire_engine.core.request import Request, RequestId
from quire_engine.core.sequence import Sequence, Status
from quire_engine.core.step import Events, Finish, FinishReason, Placement, StepPlan, StepResult, TokenLogprob
from quire_engine.errors import RequestRejected

__all__ = ["Limits", "Load", "Scheduler"]

NOT_A_NUMBER = Finish(
    FinishReason.ERROR,
    message="no token could be chosen: the model computed something that is not a number; its weights, or this number "
    "format, are at fault",
)
NOTHING_LEFT = Finish(
    FinishReason.ERROR,
    message="no token could be chosen: nothing was left that the request allows, or its grammar took too long to follow",
    by_request=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_tokens: int  # a prompt with more to go than that is long: it waits for short ones, but for this much
    by_priority: bool = False  # else in order of arrival


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an observer may know of the scheduler."""

    running: int
    waiting: int
    kv_usage: float  # 0..1, of blocks that are held
    preemptions: int  # since the start, as are:
    finished: int  # sequences, however they ended
    prefix_queries: int  # tokens of admitted prompts
    prefix_hits: int  # those of them that were found in the cache


class Scheduler:
    def __init__(
        self, memory: Memory, limits: Limits, token_bytes: Seq[bytes], special_bytes: Seq[bytes] | None = None
    ) -> None:
        """`token_bytes[id]` is what a token adds to the text; stop strings are matched on it, or on `special_bytes`,
        the same with the texts of special tokens, for requests that show them."""
        self._memory = memory
        self._limits = limits
        self._token_bytes = token_bytes
        self._special_bytes = special_bytes or token_bytes
        self._sequences: dict[RequestId, Sequence] = {}
        self._doubtful: set[RequestId] = set()  # of these
        self._waiting: list[Sequence] = []  # by rank, as is
        self._running: list[Sequence] = []
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._arrivals = 0
        self._preemptions = 0
        self._finished = 0
        self._prefix_queries = 0
        self._prefix_hits = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def load(self) -> Load:
        return Load(
            running=len(self._running),
            waiting=len(self._sequences) - len(self._running),
            kv_usage=self._memory.usage,
            preemptions=self._preemptions,
            finished=self._finished,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def add(self, request: Request) -> None:
        """Queue a request; RequestRejected if it could never be answered."""
        prompt, limit = len(request.prompt), self._limits.max_model_len
        if prompt == 0:
            raise RequestRejected("the prompt is empty: at least one token is needed", "prompt")
        if prompt >= limit:
            raise RequestRejected(
                f"this model's maximum context length is {limit} tokens with the output, and the prompt has {prompt}: shorten it",
                "prompt",
            )
        if not 0 <= min(request.prompt) <= max(request.prompt) < len(self._token_bytes):
            raise RequestRejected(
                f"the prompt has a token that is not in the vocabulary, whose ids are 0 to {len(self._token_bytes) - 1}",
                "prompt",
            )
        if request.id in self._sequences:
            raise AssertionError(f"request id {request.id} is in use")
        max_length = min(prompt + request.params.max_tokens, limit)
        if not self._memory.could_hold(max_length):
            raise RequestRejected(
                f"prompt and max_tokens come to {max_length} tokens, and the KV cache holds {self._memory.num_tokens}: "
                "ask for fewer",
                "max_tokens",
            )
        self._arrivals += 1
        rank = (request.priority if self._limits.by_priority else 0, self._arrivals)
        leader = None if request.leader is None else self._sequences.get(request.leader)
        sequence = Sequence(request, max_length, rank, Status.FOLLOWING if leader else Status.WAITING)
        if leader is None:
            insort(self._waiting, sequence, key=_rank)
        self._sequences[request.id] = sequence
        if leader is None:
            return
        sequence.leader = leader
        leader.followers.append(sequence)
        if leader.prompt_ready:
            self._queue(sequence)

    def abort(self, request_id: RequestId) -> Events:
        """End a request now; unknown and finished ones are left alone."""
        events = Events()
        sequence = self._sequences.get(request_id)
        if sequence is not None:
            self._end(sequence, Finish(FinishReason.ABORT), events)
        return events

    def schedule(self) -> StepPlan:
        plan = StepPlan()
        preemptions = self._preemptions
        budget = self._limits.max_num_batched_tokens - self._plan_single_tokens(plan)
        long = self._limits.long_prefill_tokens
        reserve = min(long, budget // 2) if any(s.num_uncomputed > long for s in self._running) else 0
        patient: list[Sequence] = []
        for sequence in self._with_prompts(plan, preemptions, patient) if budget else ():
            missing = sequence.num_uncomputed
            if missing > long:
                patient.append(sequence)
            elif (length := min(missing, budget - reserve)) > 0:
                self._advance(plan, sequence, length)
                budget -= length
            if budget <= (reserve if patient else 0):
                break
        for sequence in patient:
            if (length := min(sequence.num_uncomputed, budget)) > 0:
                self._advance(plan, sequence, length)
                budget -= length
        return plan

    def commit(self, plan: StepPlan, result: StepResult) -> Events:
        events = Events()
        row = 0
        for chunk, request_id in enumerate(plan.ids):
            sequence = self._sequences.get(request_id)  # None: it ended while this step was under way
            if sequence and not sequence.has_begun:
                sequence.has_begun = True
                events.cached[request_id] = sequence.num_found or 0
            if sequence and (scored := result.prompt_logprobs.get(chunk)):
                self._take_scores(sequence, plan.starts[chunk], scored, events)
            if plan.samples[chunk]:
                if sequence:
                    self._take_token(sequence, result.tokens[row], result.logprobs.get(row), events)
                row += 1
            if sequence and sequence.status is Status.RUNNING:
                self._memory.note_computed(sequence)
        if row != len(result.tokens):
            raise AssertionError(f"{row} chunks sample, but {len(result.tokens)} tokens came back")
        return events

    def doubt(self) -> None:
        """A step was broken off: what it was to compute, nobody knows. Sequences can only be ended after this, and nothing of
        theirs is found that was not found before."""
        self._doubtful |= self._sequences.keys()

    def take_back(self, plan: StepPlan) -> None:
        """The same, of a plan that was not carried out: nothing of it is computed."""
        self.doubt()
        for request_id, start, samples in zip(plan.ids, plan.starts, plan.samples, strict=True):
            sequence = self._sequences[request_id]
            sequence.num_computed = start
            sequence.num_in_flight -= samples

    def check(self) -> None:
        """Raise unless the books balance; tests call it after every step."""
        self._memory.check(self._sequences.values())
        slots = [sequence.slot for sequence in self._running]
        if sorted([*self._free_slots, *(s for s in slots if s is not None)]) != list(range(self._limits.max_num_seqs)):
            raise AssertionError(f"slots {slots} run and {self._free_slots} are free")
        for queue in (self._running, self._waiting):
            if [s.rank for s in queue] != sorted(s.rank for s in queue):
                raise AssertionError("a queue is not in order of rank")
        for sequence in self._sequences.values():
            where = (sequence in self._running, sequence in self._waiting)
            if where != (sequence.status is Status.RUNNING, sequence.status is Status.WAITING):
                raise AssertionError(f"request {sequence.request.id} is {sequence.status.name} and in the wrong queue")
            if not 0 <= sequence.num_computed <= sequence.num_tokens <= sequence.max_length:
                raise AssertionError(f"request {sequence.request.id} counts its tokens wrongly")

    # ------------------------------------------------------------------ the steps of `schedule`

    def _plan_single_tokens(self, plan: StepPlan) -> int:
        """A token for each running sequence that lacks just one; how many those are."""
        index = 0
        while index < len(self._running):
            sequence = self._running[index]
            if sequence.num_uncomputed == 1:
                if not self._make_room(plan, index):
                    continue  # it is not there any more: the next one has its index
                self._advance(plan, sequence, 1)
            index += 1
        return len(plan.ids)

    def _make_room(self, plan: StepPlan, index: int) -> bool:
        """See to it that a running sequence has a block for its next token; False if it was preempted itself.

        Only those behind it make way: they have no token in this step yet, and the first is never a victim.
        """
        sequence = self._running[index]
        if self._memory.has_place(sequence):
            return True
        while not self._memory.grow(plan, sequence):
            victim = self._memory.victim(self._running[index + 1 :]) or sequence
            self._leave_running(victim)
            self._memory.give_up(plan, victim)
            self._preemptions += 1
            self._queue(victim)
            if victim is sequence:
                return False
        return True

    def _with_prompts(self, plan: StepPlan, preemptions: int, patient: list[Sequence]) -> Iterator[Sequence]:
        """Who has more than a token to compute: those that run, then those that can be admitted now.

        While a long one is there, only short ones are admitted: they pass it anyway, and another long one would hold
        its blocks for nothing, and miss what this one is about to make findable.
        """
        yield from [sequence for sequence in self._running if sequence.num_uncomputed > 1]
        while preemptions == self._preemptions and (sequence := self._admit_next(plan, only_short=bool(patient))):
            yield sequence

    def _admit_next(self, plan: StepPlan, *, only_short: bool) -> Sequence | None:
        """Start the first waiting sequence, if there is a slot, and blocks to spare for those that run."""
        if not self._waiting or not self._free_slots:
            return None
        index = 0
        if only_short:
            limit = self._limits.long_prefill_tokens
            index = next((i for i, s in enumerate(self._waiting) if s.num_uncomputed <= limit), -1)
            if index < 0:
                return None
        sequence = self._waiting[index]
        if sequence.num_in_flight or not self._memory.admit(plan, sequence, spare=len(self._running)):
            return None
        del self._waiting[index]
        insort(self._running, sequence, key=_rank)
        sequence.become(Status.RUNNING)
        sequence.slot = self._free_slots.pop()
        if sequence.num_found is None:
            sequence.num_found = sequence.num_computed
            self._prefix_queries += sequence.num_prompt
            self._prefix_hits += sequence.num_found
        plan.placements.append(
            Placement(
                slot=sequence.slot,
                tokens=sequence.tokens.copy(),
                num_prompt=sequence.num_prompt,
                blocks=sequence.blocks.copy(),
                params=sequence.request.params,
            )
        )
        return sequence

    def _advance(self, plan: StepPlan, sequence: Sequence, length: int) -> None:
        """Plan the next `length` tokens of `sequence`, and count them as computed."""
        assert sequence.slot is not None  # every running sequence has one; `check` proves it
        start = sequence.num_computed
        sequence.num_computed = end = start + length
        samples = end == len(sequence.tokens) + sequence.num_in_flight
        sequence.num_in_flight += samples
        plan.ids.append(sequence.request.id)
        plan.slots.append(sequence.slot)
        plan.starts.append(start)
        plan.lengths.append(length)
        plan.samples.append(samples)
        plan.batch_invariant |= sequence.request.params.batch_invariant

    # ------------------------------------------------------------------ the steps of `commit`

    def _take_token(self, sequence: Sequence, token: int, logprob: TokenLogprob | None, events: Events) -> None:
        sequence.num_in_flight -= 1
        if token < 0:
            self._end(sequence, NOT_A_NUMBER if token == -1 else NOTHING_LEFT, events)
            return
        sequence.tokens.append(token)
        if logprob is not None:
            events.logprobs[len(events.ids)] = logprob
        finish = self._judge(sequence, token)
        if finish is not None:
            self._end(sequence, finish, events, token)
            return
        events.ids.append(sequence.request.id)
        events.tokens.append(token)
        if sequence.status is Status.RUNNING and not sequence.prompt_ready:
            sequence.prompt_ready = True
            self._release_followers(sequence)

    def _judge(self, sequence: Sequence, token: int) -> Finish | None:
        """Does this token, the last of `sequence`, end it?"""
        params = sequence.request.params
        table = self._special_bytes if params.special_text else self._token_bytes
        stop = sequence.stops and sequence.stops.feed(table[token])
        if token in params.stop_token_ids:
            return Finish(FinishReason.STOP)
        if stop and len(sequence.tokens) - sequence.num_prompt >= params.min_tokens:
            return Finish(FinishReason.STOP, stop=stop)
        if len(sequence.tokens) >= sequence.max_length:
            return Finish(FinishReason.LENGTH)
        return None

    def _take_scores(self, sequence: Sequence, start: int, scored: list[TokenLogprob], events: Events) -> None:
        """Report log probabilities of the prompt once, also when it is computed again after a preemption."""
        new = scored[max(0, sequence.num_scored - start) :]
        if new:
            sequence.num_scored += len(new)
            events.prompt_logprobs.setdefault(sequence.request.id, []).extend(new)

    def _end(self, sequence: Sequence, finish: Finish, events: Events, token: int = -1) -> None:
        if sequence.status is Status.RUNNING:
            self._leave_running(sequence)
            doubtful = finish.reason is FinishReason.ERROR or sequence.request.id in self._doubtful
            self._memory.release(sequence, keep=not doubtful)
        else:
            if sequence.status is Status.WAITING:
                self._waiting.remove(sequence)
            self._memory.drop_swapped(sequence)
        sequence.become(Status.FINISHED)
        self._release_followers(sequence)
        del self._sequences[sequence.request.id]
        self._doubtful.discard(sequence.request.id)
        self._finished += 1
        events.finished[len(events.ids)] = finish
        events.ids.append(sequence.request.id)
        events.tokens.append(token)

    # ------------------------------------------------------------------ moving between queues

    def _queue(self, sequence: Sequence) -> None:
        sequence.become(Status.WAITING)
        insort(self._waiting, sequence, key=_rank)

    def _leave_running(self, sequence: Sequence) -> None:
        """Give the slot back. What was to be shared of its blocks is not any more."""
        assert sequence.slot is not None
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = None
        sequence.prompt_ready = False
        self._release_followers(sequence)
        for follower in sequence.followers:
            follower.leader = None
        sequence.followers.clear()

    def _release_followers(self, leader: Sequence) -> None:
        """They need not wait for the prompt any longer."""
        for follower in leader.followers:
            if follower.status is Status.FOLLOWING:
                self._queue(follower)


def _rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
