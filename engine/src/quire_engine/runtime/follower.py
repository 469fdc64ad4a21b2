"""A step on several ranks: rank 0 runs it as ever (runner.py), the others do the same to their own part, and sample nothing.

The others are told of two things, in the order in which rank 0 does them: a plan, and rows whose logits are wanted. Ids
and rows come from rank 0 by the device, so that nothing waits for the host: it may be a step ahead of what was sampled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire_engine.core.step import StepPlan
from quire_engine.layers.attention import Cache
from quire_engine.models import CausalLM
from quire_engine.runtime.batch import BatchBuilder, ForwardBatch
from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.runtime.ranks import Ranks

__all__ = ["Follower", "Leader"]


class Leader:
    """Rank 0's model: the whole one, to those who use it."""

    def __init__(self, model: CausalLM, ranks: Ranks, wanted: Callable[[int], None]) -> None:
        """`wanted` tells the others of the stage that the logits of so many rows are."""
        self._model = model
        self._ranks = ranks
        self._wanted = wanted

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        self._ranks.hand_out(batch.tokens)
        return self._model.forward(batch, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        self._wanted(len(hidden))
        self._ranks.hand_out(hidden)
        return self._model.logits(hidden)


class Follower:
    def __init__(
        self,
        model: CausalLM,
        ranks: Ranks,
        cache: KVCache,
        builder: BatchBuilder,
        row: Tensor,
        invariance: Invariance | None,
    ) -> None:
        """`row` is one of hidden states, of whatever numbers."""
        self._invariance = invariance
        self._model = model
        self._ranks = ranks
        self._cache = cache
        self._builder = builder
        self._row = row

    @torch.inference_mode()
    def step(self, plan: StepPlan) -> None:
        self._cache.swap_out(plan.swap_out)
        self._cache.copy(plan.copies)
        self._cache.swap_in(plan.swap_in)
        self._builder.take_in(plan)
        if self._invariance is not None:
            self._invariance.asked = plan.batch_invariant
        if plan.ids:
            batch = self._builder.build(plan)
            self._ranks.hand_out(batch.tokens)
            self._model.forward(batch, self._cache)

    @torch.inference_mode()
    def logits(self, rows: int) -> None:
        hidden = self._row.new_empty(rows, len(self._row))
        self._ranks.hand_out(hidden)
        self._model.logits(hidden)
