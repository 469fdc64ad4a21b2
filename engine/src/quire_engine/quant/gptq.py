"""GPTQ: 4 or 8 bits; rows are divided into groups, in order or, with desc_act, as g_idx says.

    NAME.qweight  int32 [in * bits / 32, out]       32 / bits inputs in a word, the first in the lowest bits
    NAME.qzeros   int32 [groups, out * bits / 32]   outputs in a word, the same way
    NAME.scales   float [groups, out]
    NAME.g_idx    int32 [in]                        the group of each input; where it is missing, i / group_size

    weight[o, i] = (q[i, o] - zero[g, o]) * scale[g, o]   with g = g_idx[i]

Format v1 ("gptq") stores each zero less one, v2 ("gptq_v2") as it is; one that would be -1 is stored as the largest.
"""

from collections.abc import Mapping
from typing import Any

import torch

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.ops.packed import Packed
from quire_engine.quant.packed import FLOATS, KINDS, group_count, grouped, number, unpacked
from quire_engine.quant.stored import Coded, Parts, Scheme, Stored, expect, modules, part

__all__ = ["gptq"]

LESS = {"gptq": 1, "gptq_v2": 0}  # what is taken off a stored zero, by checkpoint_format


def gptq(said: Mapping[str, Any]) -> Scheme:
    bits, group = number(said, "bits"), number(said, "group_size")
    layout = str(said.get("checkpoint_format", "gptq"))
    if bits not in (4, 8):
        raise ConfigFailure(f"GPTQ of {bits} bits is not supported yet, only of 4 and 8")
    if layout not in LESS:
        raise ConfigFailure(f"GPTQ's layout {layout} is not supported yet, only {' and '.join(LESS)}")
    for pattern, changes in (said.get("dynamic") or {}).items():
        if not pattern.startswith("-:"):  # those only leave modules as they are
            raise ConfigFailure(f"GPTQ with other settings ({changes}) for {pattern!r} is not supported yet")

    def join(stored: Parts) -> dict[str, Stored]:
        plain = dict(stored)
        for name in list(modules(stored, ".qweight")):
            plain[f"{name}.weight"] = _weight(plain, name, bits, group, LESS[layout])
        return plain

    return join


def _weight(plain: dict[str, Stored], name: str, bits: int, group: int, less: int) -> Stored:
    words, zeros, scales = (part(plain, f"{name}.{kind}") for kind in ("qweight", "qzeros", "scales"))
    order = plain.pop(f"{name}.g_idx", None)
    expect(words, f"{name}.qweight", ("I32",), (words.get_shape()[0], words.get_shape()[-1]))
    into, out = words.get_shape()[0] * 32 // bits, words.get_shape()[1]
    groups = group_count(into, group, f"{name}.qweight")
    expect(zeros, f"{name}.qzeros", ("I32",), (groups, out * bits // 32))
    expect(scales, f"{name}.scales", FLOATS, (groups, out))
    if order is not None:
        expect(order, f"{name}.g_idx", ("I32", "I64"), (into,))

    def read() -> Packed:
        of = None if order is None else order[...].long()
        if of is not None and (int(of.min()) < 0 or int(of.max()) >= groups):
            raise WeightsFailure(
                f"{name}.g_idx names groups {int(of.min())} to {int(of.max())}, and there are {groups}"
            )
        half = 1 << (bits - 1)
        zero = ((unpacked(zeros[...], bits, 1).int() + half + less) % (2 * half) - half).to(torch.int8)
        numbers = unpacked(words[...].T.contiguous(), bits, 1)
        return grouped(KINDS[bits], numbers, scales[...].T, zero.T, of)

    return Coded(name, KINDS[bits], (out, into), groups, read)
