"""One number a weight, and scales: one for all of a matrix, one for each row, or one for each block of it.

    weight[o, i] = (q[o, i] - zero) * scale     the zero, if there is one, is of the scale's shape

Blocks at the right and lower edge may be cut. Used by fp8.py and compressed.py, which know the names.
"""

import math

from torch import Tensor

from quire_engine.ops.packed import Kind, Packed
from quire_engine.quant.packed import FLOATS
from quire_engine.quant.stored import Coded, Stored, expect

__all__ = ["Block", "scaled"]

Block = tuple[int, int]


def _check(scale: Stored, name: str, shape: tuple[int, int], block: Block | None, kinds: tuple[str, ...]) -> None:
    rows, columns = shape
    if block is None:
        expect(scale, name, kinds, (), (1,), (1, 1), (rows, 1), (rows,))
    else:
        expect(scale, name, kinds, (-(-rows // block[0]), -(-columns // block[1])))


def _by_row(scale: Tensor, shape: tuple[int, int], block: Block | None) -> Tensor:
    """[rows, groups]. Where the last block of a row is cut, groups are smaller than blocks: all have to be alike."""
    if block is None:
        return scale.reshape(-1, 1).expand(shape[0], 1)
    group = _group(shape[1], block)
    tall = scale.repeat_interleave(block[0], dim=0)[: shape[0]]
    return tall.repeat_interleave(max(1, block[1] // group), dim=1)[:, : shape[1] // group]


def _group(columns: int, block: Block | None) -> int:
    """Numbers of a row that share a scale."""
    return columns if block is None or columns <= block[1] else math.gcd(columns, block[1])


def scaled(
    numbers: Stored,
    scale: Stored,
    name: str,
    block: Block | None,
    zero: Stored | None = None,
    zeros: str = "",
    *,
    rounds: bool,
) -> Stored:
    """`name` is the scale's, `zeros` that of the zero points; `rounds`: of activations, too."""
    rows, columns = numbers.get_shape()
    shape = (rows, columns)
    _check(scale, name, shape, block, FLOATS)
    if zero is not None:
        _check(zero, zeros, shape, block, ("I8",))
    kind = Kind.FP8 if numbers.get_dtype() == "F8_E4M3" else Kind.INT8

    def read() -> Packed:
        off = None if zero is None else _by_row(zero[...], shape, block)
        return Packed.of(kind, numbers[...], _by_row(scale[...], shape, block), off, rounds=rounds)

    return Coded(name.rpartition(".")[0], kind, shape, columns // _group(columns, block), read)
