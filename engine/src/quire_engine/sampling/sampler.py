"""Chooses the next token of each row: the processors in their order, then the best token or a draw.

A step costs what its rows ask for: a batch that is greedy and asks for nothing is one maximum. The host reads no token
here, for it may be a step ahead, unless a grammar needs it; what else depends on the output so far is kept on the device,
by slot. A row's token depends on its own logits, parameters, position and output alone: not on the batch, nor on a preemption.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.core.step import Placement, TokenLogprob
from quire_engine.ops import Ops
from quire_engine.sampling.drawing import Drawing
from quire_engine.sampling.logprobs import Scores, token_logprobs
from quire_engine.sampling.processors import AllowedTokens, BadWords, LogitBias, MinTokens, Penalties, Processor
from quire_engine.sampling.rows import Rows, upload

__all__ = ["Sampled", "Sampler"]


class Sampled:
    def __init__(self, tokens: Tensor, scores: Scores | None = None, scored: list[int] | None = None) -> None:
        self.tokens = tokens  # [S] int64, on the device; below 0: why there is none (ops: best)
        self._scores = scores
        self._scored = scored or []  # rows, in the order of `scores`

    def logprobs(self) -> dict[int, TokenLogprob]:
        """By row, of those that asked. The device must be done with the step."""
        if self._scores is None:
            return {}
        return {row: score for row, score in zip(self._scored, self._scores.read(), strict=True) if score is not None}


class Sampler:
    def __init__(
        self,
        vocabulary: int,
        max_num_seqs: int,
        device: torch.device,
        ops: Ops,
        grammars: Processor | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._ops = ops
        self._device = device
        self._processors: tuple[Processor, ...] = (  # the order is what they mean together
            AllowedTokens(device),
            BadWords(max_num_seqs, device),
            LogitBias(device),
            MinTokens(max_num_seqs, device),
            Penalties(ops, vocabulary, max_num_seqs, device),
            *([grammars] if grammars else []),  # last: where an answer can only end, it ends, whatever the others say
        )
        self._drawing = Drawing(vocabulary, max_num_seqs)  # temperature, min-p, top-k, top-p, noise
        self._top = np.zeros(max_num_seqs, np.int64)  # log probabilities beside the token's own
        # [processors, then whether it draws, then whether it wants log probabilities; slots]
        self._needs = np.zeros((len(self._processors) + 2, max_num_seqs), np.bool_)

    def place(self, placed: Placement) -> None:
        """A sequence takes a slot, whatever was there: a new one, or one that goes on."""
        for number, processor in enumerate(self._processors):
            self._needs[number, placed.slot] = processor.place(placed)
        wants_logprobs = placed.params.logprobs is not None
        self._needs[-2, placed.slot] = self._drawing.place(placed)
        self._needs[-1, placed.slot] = wants_logprobs
        self._top[placed.slot] = min(placed.params.logprobs or 0, self._vocabulary)

    def sample(self, logits: Tensor, slots: Sequence[int] | NDArray[np.int64], positions: list[int]) -> Sampled:
        """[S, V] float32, which it may overwrite; positions[i] is the position of the token that is chosen."""
        rows = Rows(np.arange(len(slots)), np.asarray(slots, np.int64), np.array(positions, np.int64))
        needs = self._needs[:, rows.slots]  # [P + 2, S]
        wanted = np.asarray(needs.any(axis=1)).tolist()
        if not any(wanted):
            return Sampled(self._ops.best(logits))
        draws, scores = wanted[-2:]
        used = [(p, rows.where(need)) for p, need, some in zip(self._processors, needs, wanted, strict=False) if some]

        scored = rows.where(needs[-1]) if scores else None
        raw = logits if scored is rows and not used else logits[upload(scored.index, self._device)] if scored else None
        for processor, some in used:
            processor.apply(logits, some)
        tokens = self._ops.best(logits)
        if draws:
            drawn = rows.where(needs[-2])
            at = upload(drawn.index, self._device)
            best = tokens[at]  # below 0 where there is nothing to draw from
            tokens[at] = torch.where(best < 0, best, self._ops.draw(logits, self._drawing.draws(drawn)))
        for processor, some in used:
            processor.note(tokens if some is rows else tokens[upload(some.index, self._device)], some)
        if scored is None or raw is None:
            return Sampled(tokens)
        chosen, tops = tokens[upload(scored.index, self._device)], self._top[scored.slots].tolist()
        return Sampled(tokens, Scores(*self._ops.score(raw, chosen, max(tops)), tops), scored.index.tolist())

    def score(self, logits: Tensor, tokens: Tensor, top: int) -> list[TokenLogprob]:
        """Given tokens [n], as if they had been chosen, with the `top` likeliest beside each. Waits for the device."""
        return token_logprobs(self._ops, logits, tokens, top)
