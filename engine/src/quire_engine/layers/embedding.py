"""From ids to vectors, and back to logits."""

import torch
from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Matrix, Ops

__all__ = ["Embedding", "Head"]


class Embedding:
    def __init__(self, ops: Ops, weights: Weights, name: str, rows: int, hidden: int) -> None:
        self._embed = ops.embed
        self.table: Matrix = ops.pack(weights.take(f"{name}.weight", (rows, hidden)))

    def __call__(self, ids: Tensor) -> Tensor:
        """[T] -> [T, hidden]"""
        return self._embed(ids, self.table)


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
        self._softcap = softcap
        if tied is not None:
            weights.ignore(f"{name}.weight")
            self._weight = tied.table
        else:
            self._weight = ops.pack(weights.take(f"{name}.weight", (vocabulary, hidden)))

    def __call__(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocabulary] float32"""
        logits = self._linear(hidden, self._weight, wide=True)
        return logits if self._softcap is None else torch.tanh(logits / self._softcap) * self._softcap
