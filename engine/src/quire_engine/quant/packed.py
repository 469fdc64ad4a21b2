"""Small numbers in the 32-bit words of an int32 tensor, and the groups that share a scale.

A word holds 32 / bits numbers, the first in its lowest bits.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quire_engine.errors import ConfigFailure, WeightsFailure

__all__ = ["FLOATS", "dequantised", "group_count", "number", "unpacked"]

FLOATS = ("F16", "BF16", "F32")  # what scales are stored as


def unpacked(words: Tensor, bits: int, dim: int) -> Tensor:
    """[.., n, ..] int32 -> [.., n * 32 / bits, ..] int16: the numbers of a word one after the other along `dim`."""
    per_word, mask = 32 // bits, (1 << bits) - 1
    columns = words.movedim(dim, -1)
    out = torch.empty((*columns.shape, per_word), dtype=torch.int16)
    for place in range(per_word):
        out[..., place] = (columns >> (bits * place)) & mask
    return out.flatten(-2).movedim(-1, dim)


def dequantised(numbers: Tensor, zeros: Tensor, scales: Tensor, of: Tensor | None = None) -> Tensor:
    """(numbers - zeros) * scales: [out, in], and of each group [out, groups]; `of` [in] is the group of each input, None:
    in order."""
    scales = scales.float()
    if of is not None:
        return numbers.float().sub_(zeros[:, of]).mul_(scales[:, of])
    rows, groups = scales.shape
    in_groups = numbers.float().view(rows, groups, -1)
    return in_groups.sub_(zeros[:, :, None]).mul_(scales[:, :, None]).view(rows, -1)


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
