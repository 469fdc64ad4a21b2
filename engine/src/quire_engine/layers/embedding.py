"""From ids to vectors, and back to logits."""

import torch
from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Matrix, Ops
from quire_engine.runtime.ranks import Part

__all__ = ["Embedding", "Head"]


class Embedding:
    def __init__(self, ops: Ops, weights: Weights, name: str, rows: int | Part, hidden: int) -> None:
        self._ops = ops
        self._rows = Part.of(rows)
        self.table: Matrix = ops.pack(weights.take(f"{name}.weight", (self._rows.whole, hidden), part=self._rows))

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] -> [T, hidden]"""
        if self._rows.is_whole:
            return self._ops.embed(ids, self.table)
        row = ids - self._rows.start
        ours = (row >= 0) & (row < self._rows.size)
        return self._ops.ranks.sum(self._ops.embed(row.where(ours, 0), self.table) * ours[:, None])


class Head:
    """Logits. A model whose `embedding` is its head too shares the matrix; a copy in the checkpoint is not read."""

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        name: str,
        vocabulary: int,
        hidden: int,
        *,
        tied: Embedding | None,
        softcap: float | None = None,
    ) -> None:
        self._linear = ops.linear
        self._gather = ops.ranks.gather
        self._vocabulary = vocabulary
        self._softcap = softcap
        if tied is not None:
            weights.ignore(f"{name}.weight")
            self._weight = tied.table
        else:
            part = ops.ranks.rows(vocabulary)
            self._weight = ops.pack(weights.matrix([f"{name}.weight"], [(vocabulary, hidden)], [part]))

    def __call__(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocabulary] float32; of several ranks the first has them all"""
        logits = self._linear(hidden, self._weight, wide=True)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return self._gather(logits, self._vocabulary)
