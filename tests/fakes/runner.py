"""A runner without a model: the next token is a pure function of the tokens before it.

It reads those tokens back from a paged memory, through the block table, as attention would. So whatever the
scheduler does wrong with blocks, copies, swaps, chunks, slots or order shows as a wrong token, or as a KeyError
where nothing was ever written.
"""

import hashlib
from dataclasses import dataclass, field

from quire_engine.core.step import Placement, StepPlan, StepResult, TokenLogprob

__all__ = ["VOCABULARY", "FakeRunner", "continuation", "next_token"]

VOCABULARY = 50


def next_token(tokens: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(tokens).encode()).digest()[:4]) % VOCABULARY


def continuation(prompt: tuple[int, ...], count: int) -> list[int]:
    """The `count` tokens that must follow `prompt`."""
    tokens = prompt
    for _ in range(count):
        tokens += (next_token(tokens),)
    return list(tokens[len(prompt) :])


@dataclass
class _Launched:
    tokens: list[int]
    scores: dict[int, list[TokenLogprob]]

    def result(self) -> StepResult:
        return StepResult(tokens=self.tokens, prompt_logprobs=self.scores)


@dataclass
class _Slot:
    placed: Placement
    blocks: list[int]
    last: int | None = None  # sampled here


@dataclass
class FakeRunner:
    block_size: int
    budget: int
    steps: int = 0
    computed: int = 0  # tokens, over all steps
    copied: int = 0  # blocks
    swapped: int = 0
    _memory: dict[int, dict[int, int]] = field(
        default_factory=dict
    )  # block -> row -> token whose key and value are there
    _host: dict[int, dict[int, int]] = field(default_factory=dict)
    _slots: dict[int, _Slot] = field(default_factory=dict)

    def launch(self, plan: StepPlan) -> _Launched:
        self.steps += bool(plan.ids)
        self._move(plan)
        for placed in plan.placements:
            self._slots[placed.slot] = _Slot(placed, list(placed.blocks))
        for slot, index, block in plan.new_blocks:
            assert index == len(self._slots[slot].blocks)
            self._slots[slot].blocks.append(block)
        assert plan.num_tokens <= self.budget
        assert not plan.is_idle
        assert len(set(plan.slots)) == len(plan.slots) == len(plan.ids)
        self.computed += plan.num_tokens
        for slot, start, length in zip(plan.slots, plan.starts, plan.lengths, strict=True):
            for position in range(start, start + length):
                self._row(slot, position)[position % self.block_size] = self._token(slot, position)
        sampled = []
        for slot, start, length, samples in zip(plan.slots, plan.starts, plan.lengths, plan.samples, strict=True):
            if samples:
                end = start + length
                context = tuple(self._row(slot, p)[p % self.block_size] for p in range(end))
                token = self._slots[slot].last = next_token(context)
                sampled.append(token)
        return _Launched(sampled, self._scores(plan))

    def _move(self, plan: StepPlan) -> None:
        for device, host in plan.swap_out:
            self._host[host] = dict(self._memory.get(device, {}))
        read = [dict(self._memory.get(source, {})) for source, _ in plan.copies]
        for (_, target), rows in zip(plan.copies, read, strict=True):
            self._memory[target] = rows
        for host, device in plan.swap_in:
            self._memory[device] = self._host.pop(host)
        self.copied += len(plan.copies)
        self.swapped += len(plan.swap_in)

    def _row(self, slot: int, position: int) -> dict[int, int]:
        return self._memory.setdefault(self._slots[slot].blocks[position // self.block_size], {})

    def _token(self, slot: int, position: int) -> int:
        state = self._slots[slot]
        if position < len(state.placed.tokens):
            return state.placed.tokens[position]
        assert state.last is not None
        return state.last

    def _scores(self, plan: StepPlan) -> dict[int, list[TokenLogprob]]:
        """The 'log probability' of a prompt's token is minus itself."""
        scores = {}
        for chunk, (slot, start, length) in enumerate(zip(plan.slots, plan.starts, plan.lengths, strict=True)):
            placed = self._slots[slot].placed
            if placed.params.prompt_logprobs is not None:
                targets = placed.tokens[: placed.num_prompt][start + 1 : start + length + 1]
                scores[chunk] = [TokenLogprob(token, -float(token), 1, ()) for token in targets]
        return scores
