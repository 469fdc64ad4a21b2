"""Decides what each step computes. Pure: it never sees a tensor, a clock or a socket.

One rule: every sequence has `num_computed`, which catches up with its number of tokens under a budget of
tokens a step. Whole prompts, chunks of prompts and single tokens are the same thing.

    schedule():  1. running sequences, oldest first, get their next chunk;
                    who needs a block and finds none preempts the youngest
                 2. if nobody was preempted, waiting ones are admitted in order of arrival,
                    each with all blocks its known tokens need, so that a started prompt always ends
    commit():    the sampled tokens take their places; what is done leaves

The oldest sequence can always proceed: a request that could not fit alone is refused by `add`. Calls may
be pipelined: `schedule` again before the `commit` of the step before (see Sequence.num_in_flight).
"""

from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from quire_engine.core.blocks import BlockPool
from quire_engine.core.request import Request, RequestId
from quire_engine.core.sequence import Sequence, Status
from quire_engine.core.step import Chunk, FinishReason, StepPlan, StepResult, TokenEvent
from quire_engine.errors import RequestRejected

__all__ = ["Limits", "Load", "Scheduler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an observer may know of the scheduler."""

    running: int
    waiting: int
    kv_usage: float  # 0..1
    preemptions: int  # since the start


class Scheduler:
    def __init__(self, pool: BlockPool, limits: Limits, token_bytes: Seq[bytes]) -> None:
        """`token_bytes[id]` is what a token adds to the text; stop strings are matched on it."""
        self._pool = pool
        self._limits = limits
        self._token_bytes = token_bytes
        self._sequences: dict[RequestId, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # in order of admission
        self._free_slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._preemptions = 0

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def load(self) -> Load:
        return Load(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_usage=1 - self._pool.num_free / self._pool.num_blocks,
            preemptions=self._preemptions,
        )

    def add(self, request: Request) -> None:
        """Queue a request; RequestRejected if it could never be answered."""
        prompt, limit = len(request.prompt), self._limits.max_model_len
        if prompt == 0:
            raise RequestRejected("the prompt is empty: at least one token is needed", "prompt")
        if prompt >= limit:
            raise RequestRejected(
                f"the prompt has {prompt} tokens, and this model takes at most {limit} with the output: shorten it",
                "prompt",
            )
        if request.id in self._sequences:
            raise AssertionError(f"request id {request.id} is in use")
        max_length = min(prompt + request.params.max_tokens, limit)
        if self._pool.blocks_for(max_length) > self._pool.num_blocks:
            tokens = self._pool.num_blocks * self._pool.block_size
            raise RequestRejected(
                f"prompt and max_tokens come to {max_length} tokens, and the KV cache holds {tokens}: ask for fewer",
                "max_tokens",
            )
        sequence = Sequence(request, max_length)
        self._sequences[request.id] = sequence
        self._waiting.append(sequence)

    def abort(self, request_id: RequestId) -> list[TokenEvent]:
        """End a request now; unknown and finished ones are left alone."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return []
        self._finish(sequence)
        return [TokenEvent(request_id=request_id, token=None, finish=FinishReason.ABORT)]

    def schedule(self) -> StepPlan:
        chunks: list[Chunk] = []
        budget = self._limits.max_num_batched_tokens
        preemptions = self._preemptions
        for sequence in tuple(self._running):
            length = min(sequence.num_uncomputed, budget)
            if sequence.status is not Status.RUNNING or length == 0:
                continue
            if self._make_room(sequence, sequence.num_computed + length):
                chunks.append(self._advance(sequence, length))
                budget -= length
        while budget and preemptions == self._preemptions and self._admit_next():
            sequence = self._running[-1]
            length = min(sequence.num_uncomputed, budget)
            chunks.append(self._advance(sequence, length))
            budget -= length
        return StepPlan(chunks=tuple(chunks))

    def commit(self, plan: StepPlan, result: StepResult) -> list[TokenEvent]:
        sampled = [chunk.request_id for chunk in plan.chunks if chunk.samples]
        if len(sampled) != len(result.tokens):
            raise AssertionError(f"{len(sampled)} chunks sample, but {len(result.tokens)} tokens came back")
        events = []
        for request_id, token in zip(sampled, result.tokens, strict=True):
            sequence = self._sequences.get(request_id)
            if sequence is None:
                continue  # it ended while this step was under way
            sequence.num_in_flight -= 1
            sequence.tokens.append(token)
            event = self._judge(sequence, token)
            if event.finish is not None:
                self._finish(sequence)
            events.append(event)
        return events

    def check(self) -> None:
        """Raise unless the books balance; tests call it after every step."""
        self._pool.check(sequence.blocks for sequence in self._sequences.values())
        slots = [sequence.slot for sequence in self._running]
        if sorted([*self._free_slots, *(s for s in slots if s is not None)]) != list(range(self._limits.max_num_seqs)):
            raise AssertionError(f"slots {slots} run and {self._free_slots} are free")
        for sequence in self._sequences.values():
            running, waiting = sequence in self._running, sequence in self._waiting
            if (running, waiting) != (sequence.status is Status.RUNNING, sequence.status is Status.WAITING):
                raise AssertionError(f"request {sequence.request.id} is {sequence.status.name} and in the wrong queue")
            if len(sequence.blocks) < self._pool.blocks_for(sequence.num_computed):
                raise AssertionError(f"request {sequence.request.id} has computed tokens without a block")

    # ------------------------------------------------------------------ the steps of the above

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Give `sequence` the blocks for `num_tokens`, from the youngest if need be; False if it was that one."""
        missing = self._pool.blocks_for(num_tokens) - len(sequence.blocks)
        while self._pool.num_free < missing:
            victim = self._running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        if missing > 0:
            sequence.blocks += self._pool.allocate(missing)
        return True

    def _admit_next(self) -> bool:
        """Start the first waiting sequence, if there is a slot, and blocks to spare for those that run."""
        if not self._waiting or not self._free_slots:
            return False
        sequence = self._waiting[0]
        needed = self._pool.blocks_for(sequence.num_tokens)
        if sequence.num_in_flight or self._pool.num_free < needed + len(self._running):
            return False
        self._waiting.popleft()
        self._running.append(sequence)
        sequence.become(Status.RUNNING)
        sequence.slot = self._free_slots.pop()
        sequence.blocks = self._pool.allocate(needed)
        return True

    def _advance(self, sequence: Sequence, length: int) -> Chunk:
        """Plan the next `length` tokens of `sequence`, and count them as computed."""
        start, end = sequence.num_computed, sequence.num_computed + length
        samples = end == sequence.num_tokens
        assert sequence.slot is not None  # every running sequence has one; `check` proves it
        chunk = Chunk(
            request_id=sequence.request.id,
            slot=sequence.slot,
            start=start,
            tokens=tuple(sequence.tokens[start:end]),
            follows=end > len(sequence.tokens),
            samples=samples,
            blocks=tuple(sequence.blocks),
            params=sequence.request.params,
        )
        sequence.num_computed = end
        sequence.num_in_flight += samples
        return chunk

    def _judge(self, sequence: Sequence, token: int) -> TokenEvent:
        """The event of a new token: does it end the request?"""
        params = sequence.request.params
        finish, stop = None, None
        if token in params.stop_token_ids or (stop := sequence.stops.feed(self._token_bytes[token])):
            finish = FinishReason.STOP
        elif len(sequence.tokens) >= sequence.max_length:
            finish = FinishReason.LENGTH
        return TokenEvent(request_id=sequence.request.id, token=token, finish=finish, stop=stop)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue; its tokens are kept, what was computed of them is not."""
        self._leave_running(sequence)
        sequence.become(Status.WAITING)
        self._waiting.appendleft(sequence)
        self._preemptions += 1

    def _finish(self, sequence: Sequence) -> None:
        if sequence.status is Status.RUNNING:
            self._leave_running(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.become(Status.FINISHED)
        del self._sequences[sequence.request.id]

    def _leave_running(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self._running.remove(sequence)
        self._free_slots.append(sequence.slot)
        self._pool.free(reversed(sequence.blocks))
        sequence.slot, sequence.blocks, sequence.num_computed = None, [], 0
