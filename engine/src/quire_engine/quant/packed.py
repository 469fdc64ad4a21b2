"""Small numbers in the 32-bit words of an int32 tensor, and the groups that share a scale.

A word holds 32 / bits numbers, the first in its lowest bits. Half their range is taken off: 4 bits are -8 to 7.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.ops.packed import Kind, Packed

__all__ = ["FLOATS", "KINDS", "group_count", "grouped", "number", "unpacked"]

FLOATS = ("F16", "BF16", "F32")  # what scales are stored as
KINDS = {4: Kind.INT4, 8: Kind.INT8}  # by bits


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """[.., n, ..] int32 -> [.., n * 32 / bits, ..] int8: the numbers of a word one after the other along `dim`."""
    per_word, mask, half = 32 // bits, (1 << bits) - 1, 1 << (bits - 1)
    columns = words.movedim(dim, -1)
    out = torch.empty((*columns.shape, per_word), dtype=torch.int8)
    for place in range(per_word):
        out[..., place] = ((columns >> (bits * place)) & mask) - half
    return out.flatten(-2).movedim(-1, dim)


def grouped(kind: Kind, numbers: Tensor, scales: Tensor, zeros: Tensor | None, of: Tensor | None) -> Packed:
    """numbers [out, in], and of each group [out, groups]; `of` [in] is the group of each input, None: in order."""
    if of is None:
        return Packed.of(kind, numbers, scales, zeros)
    order = of.argsort(stable=True)
    groups, into = scales.shape[1], len(of)
    if torch.equal(of[order], torch.arange(into) // (into // groups)):
        in_order = torch.equal(order, torch.arange(into))
        return Packed.of(kind, numbers[:, order], scales, zeros, None if in_order else order)
    return Packed.of(kind, numbers, scales[:, of], None if zeros is None else zeros[:, of])  # groups of several sizes


def group_count(size: int, group: int, name: str) -> int:
    """How many groups of so many numbers a row of `size` has; -1: the row is one."""
    if group == -1:
        return 1
    if size % group:
        raise WeightsFailure(f"{name} has rows of {size}, which groups of {group} do not divide")
    return size // group


def number(said: Mapping[str, Any], *names: str) -> int:
    """The first of these that quantization_config has, if it is a whole number."""
    value = next((said[name] for name in names if name in said), None)
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value != -1):
        raise ConfigFailure(f"{names[0]} of quantization_config is {value!r}, and should be a number")
    return value
