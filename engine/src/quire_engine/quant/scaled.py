"""One number a weight, and scales: one for all of a matrix, one for each row, or one for each block of it.

    weight[o, i] = (q[o, i] - zero) * scale     the zero, if there is one, is of the scale's shape

Blocks at the right and lower edge may be cut. Used by fp8.py and compressed.py, which know the names.
"""

import torch
from torch import Tensor

from quire_engine.quant.packed import FLOATS
from quire_engine.quant.stored import Derived, Stored, expect

__all__ = ["Block", "scaled"]

Block = tuple[int, int]


def _check(scale: Stored, name: str, shape: tuple[int, int], block: Block | None, kinds: tuple[str, ...]) -> None:
    rows, columns = shape
    if block is None:
        expect(scale, name, kinds, (), (1,), (1, 1), (rows, 1), (rows,))
    else:
        expect(scale, name, kinds, (-(-rows // block[0]), -(-columns // block[1])))


def _spread(scale: Tensor, shape: tuple[int, int], block: Block | None) -> Tensor:
    """A scale as [1, 1], [rows, 1] or [rows, columns]."""
    if block is None:
        return scale.reshape(-1, 1)
    tall = scale.repeat_interleave(block[0], dim=0)[: shape[0]]
    return tall.repeat_interleave(block[1], dim=1)[:, : shape[1]]


def scaled(
    numbers: Stored, scale: Stored, name: str, block: Block | None, zero: Stored | None = None, zeros: str = ""
) -> Stored:
    """`name` is the scale's, `zeros` that of the zero points."""
    rows, columns = numbers.get_shape()
    _check(scale, name, (rows, columns), block, FLOATS)
    if zero is not None:
        _check(zero, zeros, (rows, columns), block, ("I8",))

    def read() -> Tensor:
        plain = numbers[...].to(torch.float32)
        if zero is not None:
            plain -= _spread(zero[...].float(), (rows, columns), block)
        return plain.mul_(_spread(scale[...].float(), (rows, columns), block))

    return Derived((rows, columns), read)
