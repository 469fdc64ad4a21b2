"""Matrix products."""

from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Ops

__all__ = ["Linear"]


class Linear:
    """y = x W^T + b. Several names are stacked: their outputs stand side by side (q|k|v, gate|up)."""

    def __init__(
        self, ops: Ops, weights: Weights, *names: str, out: tuple[int, ...], into: int, bias: bool = False
    ) -> None:
        self._linear = ops.linear
        self._weight = weights.stacked([f"{name}.weight" for name in names], [(rows, into) for rows in out])
        self._bias = weights.stacked([f"{name}.bias" for name in names], [(rows,) for rows in out]) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x, self._weight, self._bias)
