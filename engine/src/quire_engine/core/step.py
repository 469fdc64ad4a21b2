"""The messages between scheduler and runner: one step of the whole batch.

    schedule() -> StepPlan -> runner.launch -> StepResult -> commit() -> TokenEvents

A chunk is a run of consecutive tokens of one sequence. There is no prefill and no decode:

    positions   0 ........ start ............... start + length ......... num_tokens
                [ computed ][ this chunk         ][ later chunks, budget allowing ]

A decode step is a chunk of length 1 that reaches the end. A chunk that reaches the end samples: the
token after it is chosen from its last row.
"""

from dataclasses import dataclass
from enum import StrEnum

from quire_engine.core.request import RequestId, SamplingParams

__all__ = ["Chunk", "FinishReason", "StepPlan", "StepResult", "TokenEvent"]


class FinishReason(StrEnum):
    STOP = "stop"  # an end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the longest sequence the engine takes
    ABORT = "abort"  # the client left
    ERROR = "error"  # the engine could not go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    request_id: RequestId
    slot: int  # the sequence's row in per-sequence arrays, 0 <= slot < max_num_seqs
    start: int  # position of the first token
    tokens: tuple[int, ...]  # the ids, but for a last one that `follows` stands for
    follows: bool  # the last token was sampled in the step before and is still on the device
    samples: bool
    blocks: tuple[int, ...]  # the block table: position p lives in blocks[p // block_size]
    params: SamplingParams

    @property
    def length(self) -> int:
        return len(self.tokens) + self.follows

    @property
    def end(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    chunks: tuple[Chunk, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    tokens: tuple[int, ...]  # one for each chunk that samples, in the order of the plan


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One more token, or the end, or both. Each request gets exactly one event with `finish`."""

    request_id: RequestId
    token: int | None
    finish: FinishReason | None = None
    stop: bytes | None = None  # the stop string that was met, if that is why
