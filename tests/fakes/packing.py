"""Random weights in few bits, for the kernels that are tested with them."""

import torch

from quire_engine.ops.packed import Kind, Packed

__all__ = ["packed_of"]


def packed_of(
    kind: Kind, height: int, width: int, group: int, *, zeros: bool = False, ordered: bool = False, rounds: bool = False
) -> Packed:
    """Every code there is, more or less; scales as a matrix of this width has them."""
    shape = (height, width // group)
    if kind is Kind.FP8:
        numbers = torch.randint(0, 127, (height, width)) + 128 * torch.randint(0, 2, (height, width))  # 127 is NaN
        numbers = numbers.to(torch.uint8).view(torch.float8_e4m3fn)
    else:
        half = 8 if kind is Kind.INT4 else 128
        numbers = torch.randint(-half, half, (height, width)).to(torch.int8)
    most = {Kind.INT4: 8, Kind.INT8: 128, Kind.FP8: 64}[kind]
    scales = ((torch.rand(shape) + 0.5) / most / width**0.5).to(torch.float16)
    off = torch.randint(-8, 8, shape).to(torch.int8) if zeros else None
    return Packed.of(kind, numbers, scales, off, torch.randperm(width) if ordered else None, rounds=rounds)
