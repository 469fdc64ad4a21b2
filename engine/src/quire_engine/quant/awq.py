"""AWQ, the gemm layout: 4 bits, a scale and a zero for each group of a row.

    NAME.qweight  int32 [in, out / 8]       8 outputs in a word, from the lowest bits: 0 2 4 6 1 3 5 7
    NAME.qzeros   int32 [groups, out / 8]   the same
    NAME.scales   float [groups, out]

    weight[o, i] = (q[i, o] - zero[i / group, o]) * scale[i / group, o]

The other layouts (gemv, gemv_fast, marlin, ...) pack otherwise under the same names: they are refused by name.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quire_engine.errors import ConfigFailure
from quire_engine.ops.packed import Kind, Packed
from quire_engine.quant.packed import FLOATS, group_count, number
from quire_engine.quant.stored import Coded, Parts, Scheme, Stored, expect, modules, part

__all__ = ["awq"]

OUTPUT_OF = (0, 2, 4, 6, 1, 3, 5, 7)  # by the place in a word


def awq(said: Mapping[str, Any]) -> Scheme:
    layout = str(said.get("version", said.get("format", "gemm"))).lower()
    if layout != "gemm":
        raise ConfigFailure(f"AWQ's {layout} layout is not supported yet, only gemm")
    bits, group = number(said, "bits", "w_bit"), number(said, "group_size", "q_group_size")
    if bits != 4:
        raise ConfigFailure(f"AWQ of {bits} bits is not supported yet, only of 4")
    if not said.get("zero_point", True):
        raise ConfigFailure("AWQ without zero points is not supported yet")

    def join(stored: Parts) -> dict[str, Stored]:
        plain = dict(stored)
        for name in list(modules(stored, ".qweight")):
            plain[f"{name}.weight"] = _weight(plain, name, group)
        return plain

    return join


def _weight(plain: dict[str, Stored], name: str, group: int) -> Stored:
    words, zeros, scales = (part(plain, f"{name}.{kind}") for kind in ("qweight", "qzeros", "scales"))
    expect(words, f"{name}.qweight", ("I32",), (words.get_shape()[0], words.get_shape()[-1]))
    rows, packed = words.get_shape()
    groups = group_count(rows, group, f"{name}.qweight")
    expect(zeros, f"{name}.qzeros", ("I32",), (groups, packed))
    expect(scales, f"{name}.scales", FLOATS, (groups, packed * 8))

    def read() -> Packed:
        return Packed.of(Kind.INT4, _numbers(words[...]), scales[...].T, _numbers(zeros[...]))

    return Coded(name, Kind.INT4, (packed * 8, rows), groups, read)


def _numbers(words: Tensor) -> Tensor:
    """[n, out / 8] int32 -> [out, n] int8, from -8 on"""
    turned = words.T.contiguous()
    out = torch.empty((len(turned), 8, len(words)), dtype=torch.int8)
    for place, output in enumerate(OUTPUT_OF):
        out[:, output] = ((turned >> (4 * place)) & 15) - 8
    return out.flatten(0, 1)
