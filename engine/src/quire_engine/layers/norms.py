"""Norms; their weights are float32."""

import torch
from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Ops

__all__ = ["LayerNorm", "RMSNorm", "rms_weight"]


def rms_weight(weights: Weights, name: str, size: int, *, from_one: bool = False) -> Tensor:
    """[size]. Gemma's checkpoints keep what is to be added to 1: `from_one`."""
    weight = weights.take(f"{name}.weight", (size,), torch.float32)
    return weight + 1.0 if from_one else weight


class RMSNorm:
    def __init__(
        self, ops: Ops, weights: Weights, name: str, size: int, epsilon: float, *, from_one: bool = False
    ) -> None:
        self._ops = ops
        self._weight = rms_weight(weights, name, size, from_one=from_one)
        self._epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.rms_norm(x, self._weight, self._epsilon)

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """The norm of x + residual, and the sum: what goes into a branch, and what goes past it."""
        if residual is None:
            return self(x), x
        return self._ops.add_rms_norm(x, residual, self._weight, self._epsilon)


class LayerNorm:
    def __init__(self, ops: Ops, weights: Weights, name: str, size: int, epsilon: float) -> None:
        self._ops = ops
        weight, bias = (weights.either(f"{name}.{new}", f"{name}.{old}") for new, old in OLD_NAMES.items())
        self._weight = weights.take(weight, (size,), torch.float32)
        self._bias = weights.take(bias, (size,), torch.float32)
        self._epsilon = epsilon

    def __call__(self, x: Tensor) -> Tensor:
        return self._ops.layer_norm(x, self._weight, self._bias, self._epsilon)


OLD_NAMES = {"weight": "gamma", "bias": "beta"}  # the first BERT was saved by TensorFlow
