"""MXFP4, as gpt-oss has its experts: numbers of four bits (E2M1), 32 of a row with one scale, a power of two (E8M0).

    NAME_blocks  U8 [experts, out, in / 32, 16]   two numbers a byte, the first in the low bits
    NAME_scales  U8 [experts, out, in / 32]       an exponent, and 127

    NAME [experts, in, out] = number * 2^(scale - 127)

Experts are dequantised as they are read, one at a time: there is no kernel yet that takes them as they are.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quire_engine.errors import WeightsFailure
from quire_engine.quant.stored import Parts, Scheme, Stored, expect, modules, part

__all__ = ["mxfp4"]

GROUP = 32
NO_NUMBER = 255  # as an exponent
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by their bits but for the sign, which is the highest


def mxfp4(said: Mapping[str, Any]) -> Scheme:
    def join(stored: Parts) -> dict[str, Stored]:
        plain = dict(stored)
        for name in modules(stored, "_blocks"):
            plain[name] = _Experts(name, part(plain, f"{name}_blocks"), part(plain, f"{name}_scales"))
        return plain

    return join


class _Experts:
    """All matrices of one kind. What is asked of one expert costs no other."""

    def __init__(self, name: str, blocks: Stored, scales: Stored) -> None:
        experts, out, groups, _ = (*blocks.get_shape(), 0, 0, 0, 0)[:4]
        expect(blocks, f"{name}_blocks", ("U8",), (experts, out, groups, GROUP // 2))
        expect(scales, f"{name}_scales", ("U8",), (experts, out, groups))
        self._name = name
        self._shape = [experts, groups * GROUP, out]
        self._blocks, self._scales = blocks, scales

    def get_shape(self) -> list[int]:
        return self._shape

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        if not isinstance(index, tuple) or not isinstance(index[0], int):
            return torch.stack([self[(number,)] for number in range(self._shape[0])])[index]
        blocks, scales = self._blocks[index[0]], self._scales[index[0]]  # [out, groups, 16], [out, groups]
        if bool((scales == NO_NUMBER).any()):
            raise WeightsFailure(f"{self._name}_scales has a scale which is no number: its file is damaged")
        table = torch.tensor([*VALUES, *(-value for value in VALUES)])
        numbers = torch.stack((table[(blocks & 15).long()], table[(blocks >> 4).long()]), dim=-1)  # [.., 16, 2]
        matrix = torch.ldexp(numbers.flatten(-2), scales.int()[..., None] - 127).flatten(-2)  # [out, in]
        return matrix.T[index[1:]]
