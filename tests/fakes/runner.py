"""A runner without a model: the next token is a pure function of the tokens before it.

It reads those tokens back from a paged memory, through the block table, as attention would. So whatever the
scheduler does wrong with blocks, chunks, slots or order shows as a wrong token.
"""

import hashlib
from dataclasses import dataclass

from quire_engine.core.step import StepPlan, StepResult

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
    tokens: tuple[int, ...]

    def result(self) -> StepResult:
        return StepResult(tokens=self.tokens)


class FakeRunner:
    def __init__(self, block_size: int, budget: int) -> None:
        self._block_size = block_size
        self._budget = budget
        self._memory: dict[int, int] = {}  # place -> token whose key and value are there
        self._last: dict[int, int] = {}  # slot -> token sampled last
        self.steps = 0

    def launch(self, plan: StepPlan) -> _Launched:
        self.steps += 1
        assert 0 < plan.num_tokens <= self._budget
        assert len({chunk.slot for chunk in plan.chunks}) == len(plan.chunks)
        sampled = []
        for chunk in plan.chunks:
            tokens = chunk.tokens + ((self._last[chunk.slot],) if chunk.follows else ())
            for position, token in enumerate(tokens, start=chunk.start):
                self._memory[self._place(chunk.blocks, position)] = token
        for chunk in plan.chunks:
            if chunk.samples:
                context = tuple(self._memory[self._place(chunk.blocks, p)] for p in range(chunk.end))
                token = self._last[chunk.slot] = next_token(context)
                sampled.append(token)
        return _Launched(tuple(sampled))

    def _place(self, blocks: tuple[int, ...], position: int) -> int:
        return blocks[position // self._block_size] * self._block_size + position % self._block_size
