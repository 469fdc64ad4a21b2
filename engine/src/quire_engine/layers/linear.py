"""Matrix products."""

import torch
from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Ops

__all__ = ["Linear"]

F32 = torch.float32


class Linear:
    """y = x W^T + b. Several names are stacked: their outputs stand side by side (q|k|v, gate|up).

    `fused` names the one tensor in which some checkpoints keep the stack; `transposed` are weights [in, out].
    """

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        *names: str,
        out: tuple[int, ...],
        into: int,
        bias: bool = False,
        fused: str | None = None,
        transposed: bool = False,
    ) -> None:
        self._linear = ops.linear
        if fused is not None and f"{fused}.weight" in weights:
            names, out = (fused,), (sum(out),)
        if transposed:
            (name,), (rows,) = names, out
            weight = weights.take(f"{name}.weight", (into, rows)).T.contiguous()
        else:
            weight = weights.stacked([f"{name}.weight" for name in names], [(rows, into) for rows in out])
        self._weight = ops.pack(weight)
        self._bias = weights.stacked([f"{n}.bias" for n in names], [(rows,) for rows in out], F32) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x, self._weight, self._bias)
