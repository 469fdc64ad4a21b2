"""Matrices in few bits: the one form in which every scheme of quant/ hands them on and kernels take them.

    weight[o, order[i]] = (code[o, i] - zero[o, g]) * scale[o, g]     g = i // group; without zeros 0, without order i

    INT4   numbers from -8 to 7, each plus 8, two in a byte. A step of a row becomes half as many bytes: byte j has
           number j in its low half, and number j + step / 2 in its high half. The last step of a row may be cut.
    INT8   a byte each, signed
    FP8    a byte each, e4m3; no zeros

Each row has scales of its own: what a checkpoint has once for a matrix or a block of rows is repeated, so that rows can be
divided and stacked at will. A step never holds two groups, unless groups are no multiple of the shortest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_engine.runtime.ranks import Part

__all__ = ["STEPS", "Kind", "Packed", "packed_bytes", "regular"]

STEPS = (128, 64, 32)  # numbers of a row that a kernel takes at once: the first of these that divides its groups
AT_ONCE = 1 << 22  # numbers that are dequantised at a time, which bounds what it takes beside the result


class Kind(StrEnum):
    INT4 = "int4"
    INT8 = "int8"
    FP8 = "fp8"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Packed:
    """A weight [out, in]. One whose inputs have an order is multiplied with inputs in that order."""

    kind: Kind
    width: int  # in
    codes: Tensor  # [out, in] int8, or uint8 as drawn above
    scales: Tensor  # [out, groups], in the checkpoint's format
    zeros: Tensor | None = None  # [out, groups] int8
    order: Tensor | None = None  # [in] int64
    rounds: bool = (
        False  # the method means activations to be rounded to the same kind, row by row, where that is faster
    )

    @classmethod
    def of(
        cls,
        kind: Kind,
        numbers: Tensor,
        scales: Tensor,
        zeros: Tensor | None = None,
        order: Tensor | None = None,
        *,
        rounds: bool = False,
    ) -> Self:
        """`numbers` [out, in] are int8 or e4m3, one by one."""
        codes, width = numbers.contiguous(), numbers.shape[1]
        if kind is Kind.INT4:
            codes = _in_halves(codes, _step(width, scales.shape[1]))
        elif kind is Kind.FP8:
            codes = codes.view(torch.int8)
        zeros = None if zeros is None else zeros.contiguous()
        return cls(
            kind=kind, width=width, codes=codes, scales=scales.contiguous(), zeros=zeros, order=order, rounds=rounds
        )

    @property
    def height(self) -> int:
        return len(self.codes)

    @property
    def group(self) -> int:
        return self.width // self.scales.shape[1]

    @property
    def step(self) -> int:
        return _step(self.width, self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.codes, self.scales, self.zeros, self.order) if t is not None)

    def numbers(self) -> Tensor:
        """[out, in], as `of` was given them"""
        if self.kind is Kind.FP8:
            return self.codes.view(torch.float8_e4m3fn)
        if self.kind is Kind.INT8:
            return self.codes
        halves = self.codes.view(self.height, -1, 1, self.step // 2)
        steps = torch.cat((halves & 15, halves >> 4), dim=2)
        return steps.view(self.height, -1)[:, : self.width].to(torch.int8) - 8

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix that it stands for: computed in float32, rounded once."""
        out = torch.empty(self.height, self.width, dtype=dtype, device=self.codes.device)
        columns: Tensor | slice = slice(None) if self.order is None else self.order
        each = max(1, AT_ONCE // self.width)
        for start in range(0, self.height, each):
            own = self._with_rows(lambda tensor, start=start: tensor[start : start + each])  # type: ignore[misc]
            wide = own.numbers().float().view(own.height, -1, self.group)
            if own.zeros is not None:
                wide -= own.zeros[:, :, None]
            wide *= own.scales[:, :, None].float()
            out[start : start + each, columns] = wide.view(own.height, -1).to(dtype)
        return out

    def to(self, device: torch.device) -> Self:
        return self._with(lambda tensor: tensor.to(device), self.order if self.order is None else self.order.to(device))

    def rows(self, index: Tensor) -> Self:
        return self._with_rows(lambda tensor: tensor[index])

    def part(self, part: Part, dim: int) -> Self | None:
        """Of the outputs (0) or the inputs (1); None if it cannot be cut there."""
        if part.is_whole:
            return self
        if dim == 0:
            return self._with_rows(lambda tensor: torch.cat([tensor[start:stop] for start, stop in part.ranges]))
        if self.order is not None:
            return None
        numbers = torch.cat([self.numbers()[:, start:stop] for start, stop in part.ranges], dim=1)
        if self.scales.shape[1] == 1:
            return type(self).of(self.kind, numbers, self.scales, self.zeros, rounds=self.rounds)
        group = math.gcd(self.group, *(border for borders in part.ranges for border in borders))

        def cut(tensor: Tensor) -> Tensor:
            finer = tensor.repeat_interleave(self.group // group, dim=1)
            return torch.cat([finer[:, start // group : stop // group] for start, stop in part.ranges], dim=1)

        zeros = None if self.zeros is None else cut(self.zeros)
        return type(self).of(self.kind, numbers, cut(self.scales), zeros, rounds=self.rounds)

    @classmethod
    def stacked(cls, parts: Sequence[Self]) -> Self | None:
        """Their outputs one after the other; None if they are not packed alike."""
        first = parts[0]
        if len(parts) == 1:
            return first
        alike = all(p.kind is first.kind and p.group == first.group and _same(p.order, first.order) for p in parts)
        if not alike:
            return None
        zeros = None
        if any(p.zeros is not None for p in parts):
            none = [torch.zeros_like(p.scales, dtype=torch.int8) for p in parts]
            zeros = torch.cat([z if p.zeros is None else p.zeros for p, z in zip(parts, none, strict=True)])
        return replace(
            first,
            codes=torch.cat([p.codes for p in parts]),
            scales=torch.cat([p.scales for p in parts]),
            zeros=zeros,
            rounds=all(p.rounds for p in parts),
        )

    def _with_rows(self, of: Callable[[Tensor], Tensor]) -> Self:
        return self._with(of, self.order)

    def _with(self, of: Callable[[Tensor], Tensor], order: Tensor | None) -> Self:
        zeros = None if self.zeros is None else of(self.zeros)
        return replace(self, codes=of(self.codes), scales=of(self.scales), zeros=zeros, order=order)


def regular(width: int, groups: int) -> bool:
    """Whether kernels can take it: each step of a row lies in one group."""
    return groups == 1 or width // groups % STEPS[-1] == 0


def packed_bytes(kind: Kind, shape: tuple[int, int], groups: int) -> int:
    """About what such a matrix takes, with scales of 16 bits and zeros."""
    return shape[0] * (shape[1] // (2 if kind is Kind.INT4 else 1) + 3 * groups)


def _step(width: int, groups: int) -> int:
    return next((step for step in STEPS if width // groups % step == 0), STEPS[-1])


def _in_halves(numbers: Tensor, step: int) -> Tensor:
    """[out, in] int8 -> [out, steps * step / 2] uint8"""
    whole = F.pad(numbers, (0, -numbers.shape[1] % step)) + 8
    low, high = whole.view(torch.uint8).view(len(numbers), -1, 2, step // 2).unbind(2)
    return (low | high << 4).flatten(1)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
