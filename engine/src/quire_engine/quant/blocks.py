"""GGUF's blocks of numbers, and what they stand for. Every layout is of whole bytes, one block after the other.

    Q4_0  d f16, q 16 bytes                          (q - 8) * d     byte i: number i low, number i + 16 high
    Q4_1  d f16, m f16, q 16 bytes                   q * d + m       the same
    Q5_0  d f16, h 4 bytes, q 16 bytes               (q - 16) * d    bit i of h is the fifth of number i
    Q5_1  d f16, m f16, h 4 bytes, q 16 bytes        q * d + m       the same
    Q8_0  d f16, q 32 signed bytes                   q * d
    Q4_K  d f16, m f16, s 12 bytes, q 128 bytes      q * d * scale - m * least         eight parts of 32
    Q5_K  d f16, m f16, s 12 bytes, h 32, q 128      the same; bit p of byte i of h is the fifth of number i of part p
    Q6_K  q 128 bytes, h 64, s 16 signed, d f16      (q - 32) * d * s                  sixteen parts of 16

K's bytes of q hold two parts of 32 numbers (Q6_K: of 64), the first in the low halves. Six bits each of eight scales and
eight leasts are in s: of the first four whole in bytes 0 to 3 and 4 to 7, of the others the low four bits in bytes 8 to 11
(scale low, least high), and the high two above those of the first four.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from quire_engine.ops.packed import Kind

__all__ = ["CODED", "READERS"]

EIGHT = torch.arange(8, dtype=torch.uint8).view(8, 1)


def _halves(raw: Tensor) -> Tensor:
    """[n, 2] bytes -> [n, 1]"""
    return raw.contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor, width: int) -> Tensor:
    """[n, bytes] -> [n, 2 * bytes]: of each `width` bytes the low halves, then the high ones."""
    parts = torch.unflatten(raw, 1, (-1, 1, width))
    return torch.cat((parts & 15, parts >> 4), dim=2).flatten(1)


def _fifth(raw: Tensor) -> Tensor:
    """[n, 4] bytes -> [n, 32]: their bits, to be added"""
    return (((raw[:, :, None] >> EIGHT.view(1, 8)) & 1) << 4).flatten(1)


def _scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """[n, 12] bytes -> scales and leasts, each [n, 8, 1]"""
    scale, least, low = torch.unflatten(raw, 1, (3, 4)).unbind(1)
    scales = torch.cat((scale & 63, (low & 15) | ((scale >> 2) & 48)), dim=1)
    leasts = torch.cat((least & 63, (low >> 4) | ((least >> 2) & 48)), dim=1)
    return scales.float()[:, :, None], leasts.float()[:, :, None]


def _codes_of_q4_0(raw: Tensor) -> Tensor:
    return _nibbles(raw[:, 2:], 16).to(torch.int8) - 8


def _codes_of_q8_0(raw: Tensor) -> Tensor:
    return raw[:, 2:].contiguous().view(torch.int8)


def _q4_0(raw: Tensor) -> Tensor:
    return _codes_of_q4_0(raw).float() * _halves(raw[:, :2])


def _q4_1(raw: Tensor) -> Tensor:
    return _nibbles(raw[:, 4:], 16).float() * _halves(raw[:, :2]) + _halves(raw[:, 2:4])


def _q5_0(raw: Tensor) -> Tensor:
    return ((_nibbles(raw[:, 6:], 16) | _fifth(raw[:, 2:6])).float() - 16) * _halves(raw[:, :2])


def _q5_1(raw: Tensor) -> Tensor:
    numbers = (_nibbles(raw[:, 8:], 16) | _fifth(raw[:, 4:8])).float()
    return numbers * _halves(raw[:, :2]) + _halves(raw[:, 2:4])


def _q8_0(raw: Tensor) -> Tensor:
    return _codes_of_q8_0(raw).float() * _halves(raw[:, :2])


def _k(numbers: Tensor, raw: Tensor) -> Tensor:
    """Numbers [n, 256] with the scales at the head of their blocks."""
    scales, leasts = _scales(raw[:, 4:16])
    by, off = scales * _halves(raw[:, :2])[:, :, None], leasts * _halves(raw[:, 2:4])[:, :, None]
    return torch.unflatten(numbers.float(), 1, (8, 32)) * by - off


def _q4_k(raw: Tensor) -> Tensor:
    return _k(_nibbles(raw[:, 16:], 32), raw)


def _q5_k(raw: Tensor) -> Tensor:
    fifth = ((raw[:, None, 16:48] >> EIGHT) & 1) << 4
    return _k(_nibbles(raw[:, 48:], 32) | fifth.flatten(1), raw)


def _q6_k(raw: Tensor) -> Tensor:
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8).view(4, 1)
    high = (torch.unflatten(raw[:, 128:192], 1, (2, 1, 32)) >> pairs) & 3
    numbers = (_nibbles(raw[:, :128], 64) | (high << 4).flatten(1)).float() - 32
    scales = raw[:, 192:208].contiguous().view(torch.int8).float() * _halves(raw[:, 208:])
    return torch.unflatten(numbers, 1, (16, 16)) * scales[:, :, None]


READERS: dict[str, Callable[[Tensor], Tensor]] = {  # by type: blocks [n, bytes] -> their numbers, in order, float32
    "F32": lambda raw: raw.view(torch.float32),
    "F16": lambda raw: raw.view(torch.float16).float(),
    "BF16": lambda raw: raw.view(torch.bfloat16).float(),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

# Those that are a number and a scale, and nothing else: blocks [n, bytes] -> int8 [n, 32]; the scale stands before them.
CODED: dict[str, tuple[Kind, Callable[[Tensor], Tensor]]] = {
    "Q4_0": (Kind.INT4, _codes_of_q4_0),
    "Q8_0": (Kind.INT8, _codes_of_q8_0),
}
