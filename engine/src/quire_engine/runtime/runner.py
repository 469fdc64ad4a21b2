"""Runs steps on one device: move blocks, lay out the batch, forward, sample.

The token just sampled stays on the device, in `_last_tokens` by slot, so that the next step can take it
from there before the host has seen it.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from quire_engine.core.step import StepPlan, StepResult, TokenLogprob
from quire_engine.ops import Forward
from quire_engine.runtime.batch import BatchBuilder
from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.runtime.sizing import SCORED_AT_ONCE
from quire_engine.sampling.rows import upload
from quire_engine.sampling.sampler import Sampled, Sampler

__all__ = ["ModelRunner"]


class _Launched:
    """Tokens on their way from the device: copied as soon as they are there, whatever was launched after."""

    def __init__(self, sampled: Sampled | None, prompt_logprobs: dict[int, list[TokenLogprob]]) -> None:
        self._sampled = sampled
        self._prompt_logprobs = prompt_logprobs
        self._arrived: torch.cuda.Event | None = None
        self._tokens: Tensor | None = None
        if sampled is not None:
            self._tokens = sampled.tokens
            if sampled.tokens.is_cuda:
                self._tokens = torch.empty(sampled.tokens.shape, dtype=torch.int64, pin_memory=True)
                self._tokens.copy_(sampled.tokens, non_blocking=True)
                self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._arrived.record()

    def result(self) -> StepResult:
        if self._arrived is not None:
            self._arrived.synchronize()
        if self._sampled is None or self._tokens is None:
            return StepResult(tokens=[], prompt_logprobs=self._prompt_logprobs)
        tokens: list[int] = self._tokens.tolist()
        return StepResult(tokens=tokens, logprobs=self._sampled.logprobs(), prompt_logprobs=self._prompt_logprobs)


class ModelRunner:
    def __init__(
        self,
        forward: Forward,
        logits: Callable[[Tensor], Tensor],
        cache: KVCache,
        builder: BatchBuilder,
        sampler: Sampler,
        max_num_seqs: int,
        device: torch.device,
        invariance: Invariance | None = None,
    ) -> None:
        self._invariance = invariance
        self._forward = forward
        self._logits = logits
        self._cache = cache
        self._builder = builder
        self._sampler = sampler
        self._device = device
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
        self._prompts: dict[
            int, tuple[Tensor, int]
        ] = {}  # slot -> its prompt, whose tokens are to be scored with so many

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> _Launched:
        self._cache.swap_out(plan.swap_out)
        self._cache.copy(plan.copies)
        self._cache.swap_in(plan.swap_in)
        self._builder.take_in(plan)
        if self._invariance is not None:
            self._invariance.asked = plan.batch_invariant
        for placed in plan.placements:
            self._sampler.place(placed)
            self._prompts.pop(placed.slot, None)
            if placed.params.prompt_logprobs is not None:
                prompt = torch.tensor(placed.tokens[: placed.num_prompt], device=self._device)
                self._prompts[placed.slot] = prompt, placed.params.prompt_logprobs

        if not plan.ids:
            return _Launched(None, {})

        batch = self._builder.build(plan)
        if len(batch.follow_rows):
            batch.tokens.index_copy_(0, batch.follow_rows, self._last_tokens.index_select(0, batch.follow_slots))
        hidden = self._forward(batch, self._cache)  # [T, hidden]
        scores = self._score_prompts(plan, hidden) if self._prompts else {}
        samples = [i for i, samples in enumerate(plan.samples) if samples]
        if not samples:
            return _Launched(None, scores)
        if len(samples) < len(hidden):  # else every row samples
            last = np.cumsum(plan.lengths)[samples] - 1  # by the host's own numbers: nothing waits for the device
            hidden = hidden.index_select(0, upload(last, self._device))
        logits = self._logits(hidden)  # [S, vocabulary] float32
        slots = np.array([plan.slots[i] for i in samples], np.int64)
        sampled = self._sampler.sample(logits, slots, [plan.starts[i] + plan.lengths[i] for i in samples])
        self._last_tokens.index_copy_(0, upload(slots, self._device), sampled.tokens.clamp(min=0))
        return _Launched(sampled, scores)

    def _score_prompts(self, plan: StepPlan, hidden: Tensor) -> dict[int, list[TokenLogprob]]:
        """For each chunk of a prompt that is to be scored: the log probability of each token after one of the chunk's."""
        scores: dict[int, list[TokenLogprob]] = {}
        row = 0
        for chunk, (slot, start, length) in enumerate(zip(plan.slots, plan.starts, plan.lengths, strict=True)):
            if slot in self._prompts:
                prompt, top = self._prompts[slot]
                targets = prompt[start + 1 : start + length + 1]
                scores[chunk] = []
                for at in range(0, len(targets), SCORED_AT_ONCE):
                    some = targets[at : at + SCORED_AT_ONCE]
                    logits = self._logits(hidden[row + at : row + at + len(some)])
                    scores[chunk] += self._sampler.score(logits, some, top)
            row += length
        return scores
