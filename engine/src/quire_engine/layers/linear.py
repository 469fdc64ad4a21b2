"""Matrix products."""

import torch
from torch import Tensor

from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.ops.packed import Packed
from quire_engine.runtime.ranks import Part

__all__ = ["Linear"]

F32 = torch.float32


class Linear:
    """y = x W^T + b. Several names are stacked: their outputs stand side by side (q|k|v, gate|up).

    `fused` names the one tensor in which some checkpoints keep the stack; `transposed` are weights [in, out].
    With a part of the outputs, y is that part. With a part of the inputs, x is, and what ranks make of theirs is summed.
    """

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        *names: str,
        out: tuple[int | Part, ...],
        into: int | Part,
        bias: bool = False,
        fused: str | None = None,
        transposed: bool = False,
    ) -> None:
        self._linear = ops.linear
        rows, columns = [Part.of(each) for each in out], Part.of(into)
        if fused is not None and f"{fused}.weight" in weights:
            names, rows = (fused,), [Part.joined(rows)]
        # Ranks divide the one or the other.
        parts, dim = ([columns], 1) if columns.size < columns.whole else (rows, 0)
        if transposed:
            (name,), (row,) = names, rows
            shape = (columns.whole, row.whole)
            weight: Tensor | Packed = weights.take(f"{name}.weight", shape, part=parts[0], dim=1 - dim).T.contiguous()
        else:
            shapes = [(row.whole, columns.whole) for row in rows]
            weight = weights.matrix([f"{name}.weight" for name in names], shapes, parts, dim)
        self._weight = ops.pack(weight)
        self._bias: Tensor | None = None
        if bias:
            each = [(row.whole,) for row in rows]
            self._bias = weights.stacked([f"{name}.bias" for name in names], each, F32, parts=rows)
        self._sum = None if columns.is_whole else ops.ranks.sum
        if columns.start > 0:
            self._bias = None  # in the sum it counts once

    def __call__(self, x: Tensor) -> Tensor:
        y = self._linear(x, self._weight, self._bias)
        return y if self._sum is None else self._sum(y)
