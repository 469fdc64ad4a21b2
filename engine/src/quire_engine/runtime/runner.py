"""Runs steps on one device: batch arrays, forward, sample.

The token just sampled stays on the device, in `_last_tokens` by slot, so that the next step can take it
from there before the host has seen it.
"""

import torch
from torch import Tensor

from quire_engine.core.step import StepPlan, StepResult
from quire_engine.models import CausalLM
from quire_engine.ops import Ops
from quire_engine.runtime.batch import build_batch
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.sampling.sampler import sample

__all__ = ["ModelRunner"]


class _Launched:
    """Tokens on their way from the device: copied as soon as they are there, whatever was launched after."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens  # [S]
        self._arrived: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._tokens = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._tokens.copy_(tokens, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def result(self) -> StepResult:
        if self._arrived is not None:
            self._arrived.synchronize()
        return StepResult(tokens=tuple(self._tokens.tolist()))


class ModelRunner:
    def __init__(self, model: CausalLM, ops: Ops, cache: KVCache, max_num_seqs: int, device: torch.device) -> None:
        self._model = model
        self._ops = ops
        self._cache = cache
        self._device = device
        self._last_tokens = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> _Launched:
        batch = build_batch(plan, self._cache.block_size, self._device)
        batch.tokens[batch.follow_rows] = self._last_tokens[batch.follow_slots]
        hidden = self._model.forward(batch, self._cache)  # [T, hidden]
        if batch.sampling.rows.numel() == 0:
            return _Launched(batch.sampling.rows)
        logits = self._model.logits(hidden[batch.sampling.rows])  # [S, vocabulary] float32
        tokens = sample(logits, batch.sampling)
        self._last_tokens[batch.sampling.slots] = tokens
        return _Launched(tokens)
