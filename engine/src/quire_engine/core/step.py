"""The messages between scheduler and runner: one step of the whole batch.

    schedule() -> StepPlan -> runner.launch -> StepResult -> commit() -> Events

A chunk is a run of consecutive tokens of one sequence. There is no prefill and no decode:

    positions   0 ........ start ............... start + length ......... num_tokens
                [ computed ][ this chunk         ][ later chunks, budget allowing ]

A decode step is a chunk of length 1 that reaches the end. A chunk that reaches the end samples: the token
after it is chosen from its last row.

The runner keeps what it has been told of each slot (tokens, blocks, parameters), so that a plan says only what
is new: a decode step of a whole batch is four lists of numbers. Tokens beyond those of a `Placement` were
sampled by the runner itself, and are still on its device.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from quire_engine.core.request import RequestId, TokenParams
from quire_engine.errors import RequestRejected

__all__ = ["Events", "Finish", "FinishReason", "Placement", "StepPlan", "StepResult", "TokenLogprob"]


class FinishReason(StrEnum):
    STOP = "stop"  # an end token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the longest sequence the engine takes
    ABORT = "abort"  # the client left
    ERROR = "error"  # the engine could not go on with it


@dataclass(slots=True, kw_only=True)
class Placement:
    """A sequence takes a slot."""

    slot: int  # its row in per-sequence arrays, 0 <= slot < max_num_seqs
    tokens: list[int]  # all that are known
    num_prompt: int  # how many of them are the prompt
    blocks: list[int]  # the block table so far: position p lives in blocks[p // block_size]
    params: TokenParams


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """In the order in which the runner takes it: what is moved, what is new, what is computed."""

    swap_out: list[tuple[int, int]] = field(default_factory=list)  # device block -> host block
    copies: list[tuple[int, int]] = field(
        default_factory=list
    )  # device block -> device block; all read before any is written
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # host block -> device block
    placements: list[Placement] = field(default_factory=list)
    new_blocks: list[tuple[int, int, int]] = field(default_factory=list)  # slot, index in its table, block

    # One entry a chunk:
    ids: list[RequestId] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # position of the first token
    lengths: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)

    batch_invariant: bool = False  # one of these sequences is to get the same bits whatever else is computed

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def is_idle(self) -> bool:
        """Nothing to do at all; blocks may move, and sequences take slots, without a chunk."""
        return not (self.ids or self.placements or self.swap_out)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of one token, from the model's own distribution."""

    token: int
    logprob: float
    rank: int  # 1 is the likeliest
    top: tuple[tuple[int, float], ...]  # the likeliest ones, best first


@dataclass(slots=True, kw_only=True)
class StepResult:
    tokens: list[int]  # one for each chunk that samples, in the order of the plan; -1: the logits were not numbers
    # -2: nothing was left that the request allows
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)  # by position in `tokens`
    prompt_logprobs: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    """By chunk of the plan: for each of its tokens that has a successor in the prompt, that successor's."""


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason
    stop: bytes | None = None  # the stop string that was met, if that is why
    message: str | None = None  # of an error
    by_request: bool = False  # the request is at fault


@dataclass(slots=True, kw_only=True)
class Events:
    """What a step brought: event i is `tokens[i]` for request `ids[i]`, or none if that is -1.

    Each request gets exactly one entry in `finished`, with its last event, or one in `refused`, and no event.
    """

    ids: list[RequestId] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finished: dict[int, Finish] = field(default_factory=dict)  # by position
    logprobs: dict[int, TokenLogprob] = field(default_factory=dict)  # by position
    prompt_logprobs: dict[RequestId, list[TokenLogprob]] = field(default_factory=dict)  # some more of them
    cached: dict[RequestId, int] = field(default_factory=dict)
    """With the first step of each request: how many tokens of its prompt were found in the prefix cache."""
    refused: dict[RequestId, RequestRejected] = field(default_factory=dict)  # it took time to see: their grammars

    def extend(self, other: "Events") -> None:
        """Append what happened after this."""
        shift = len(self.ids)
        self.ids += other.ids
        self.tokens += other.tokens
        self.finished.update({shift + i: finish for i, finish in other.finished.items()})
        self.logprobs.update({shift + i: logprob for i, logprob in other.logprobs.items()})
        for request_id, more in other.prompt_logprobs.items():
            self.prompt_logprobs.setdefault(request_id, []).extend(more)
        self.cached.update(other.cached)
        self.refused.update(other.refused)
