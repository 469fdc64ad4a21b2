"""compressed-tensors, the layouts of LLM Compressor: FP8, INT8, and integers of 4 or 8 bits in words.

    float-quantized, int-quantized, naive-quantized
        NAME.weight             F8_E4M3 or I8 [out, in]
        NAME.weight_scale       float, by the strategy: tensor [1], channel [out, 1], group [out, groups], block [..]
        NAME.weight_zero_point  I8 of the same shape, if the scheme is not symmetric

    pack-quantized
        NAME.weight_packed      int32 [out, in * bits / 32]   the first input in the lowest bits, half the range added
        NAME.weight_scale       float [out, groups]           groups is 1 for the strategies channel and tensor ([1])
        NAME.weight_zero_point  int32 [out * bits / 32, groups], packed along the outputs the same way
        NAME.weight_g_idx       int32 [in]                    the group of each input; missing, or all -1: in order
        NAME.weight_shape       int64 [2]                     out, in

    weight = (q - zero) * scale

Scales of activations and of the KV cache are left: the cache is not quantized, and activations that are rounded have a scale
for each row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.ops.packed import Packed
from quire_engine.quant.fp8 import IDLE
from quire_engine.quant.packed import FLOATS, KINDS, group_count, grouped, number, unpacked
from quire_engine.quant.scaled import Block, scaled
from quire_engine.quant.stored import Coded, Parts, Scheme, Stored, expect, modules, part

__all__ = ["compressed_tensors"]

FORMATS = {  # -> the tensor that each of its matrices has
    "float-quantized": ".weight_scale",
    "int-quantized": ".weight_scale",
    "naive-quantized": ".weight_scale",
    "pack-quantized": ".weight_packed",
}
STRATEGIES = ("tensor", "channel", "group", "block")
STORED = {("float", 8): "F8_E4M3", ("int", 8): "I8"}
IDLE_TOO = (*IDLE, ".input_zero_point", ".input_global_scale", ".k_zero_point", ".v_zero_point")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matrices:
    """How the quantized matrices of a checkpoint are kept: all in one way."""

    format: str
    kind: str  # float or int
    bits: int
    strategy: str
    group: int  # numbers of a row that share a scale; -1: all
    block: Block | None
    symmetric: bool
    rounds: bool  # activations, too


def compressed_tensors(said: Mapping[str, Any]) -> Scheme:
    how = _read(said)

    def join(stored: Parts) -> dict[str, Stored]:
        plain = {name: tensor for name, tensor in stored.items() if not name.endswith(IDLE_TOO)}
        for name in list(modules(stored, FORMATS[how.format])):
            make = _packed if how.format == "pack-quantized" else _whole
            plain[f"{name}.weight"] = make(plain, name, how)
        return plain

    return join


def _read(said: Mapping[str, Any]) -> _Matrices:
    for name in ("sparsity_config", "transform_config"):
        given = said.get(name)
        if given and given.get("format", "dense" if name == "sparsity_config" else "") != "dense":
            raise ConfigFailure(f"compressed-tensors with {name} is not supported yet")
    groups = list((said.get("config_groups") or {}).values())
    if not groups or any(group.get("weights") != groups[0].get("weights") for group in groups):
        raise ConfigFailure("compressed-tensors with several schemes for weights, or none, is not supported yet")
    weights = groups[0].get("weights") or {}
    form = str(groups[0].get("format") or said.get("format"))
    bits, kind, strategy = number(weights, "num_bits"), str(weights.get("type", "int")), str(weights.get("strategy"))
    if form not in FORMATS:
        raise ConfigFailure(f"compressed-tensors' format {form} is not supported yet, only {', '.join(FORMATS)}")
    packed = form == "pack-quantized"
    if (kind, bits) not in ([("int", 4), ("int", 8)] if packed else STORED):
        raise ConfigFailure(f"compressed-tensors' {form} of {bits}-bit {kind} is not supported yet")
    if strategy not in STRATEGIES or (packed and strategy == "block"):
        raise ConfigFailure(
            f"compressed-tensors' {form} by {strategy} is not supported yet, only {', '.join(STRATEGIES)}"
        )
    size = weights.get("block_structure") if strategy == "block" else None
    if strategy == "block" and not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise ConfigFailure(f"block_structure of quantization_config is {size!r}, and should be two numbers")
    group = number(weights, "group_size") if strategy == "group" else -1
    if strategy == "group":
        size = [1, group]
    return _Matrices(
        format=form,
        kind=kind,
        bits=bits,
        strategy=strategy,
        group=group,
        block=None if size is None else (size[0], size[1]),
        symmetric=bool(weights.get("symmetric", True)),
        rounds=_numbers_of(groups[0].get("input_activations") or {}) == (kind, bits),
    )


def _numbers_of(said: Mapping[str, Any]) -> tuple[Any, Any]:
    return said.get("type"), said.get("num_bits")


def _whole(plain: dict[str, Stored], name: str, how: _Matrices) -> Stored:
    numbers, scale = part(plain, f"{name}.weight"), part(plain, f"{name}.weight_scale")
    zero = plain.pop(f"{name}.weight_zero_point", None)
    if not how.symmetric and zero is None:
        raise WeightsFailure(f"the quantized {name} has no tensor {name}.weight_zero_point")
    shape = numbers.get_shape()
    expect(numbers, f"{name}.weight", (STORED[how.kind, how.bits],), (shape[0], shape[-1]))
    zero = None if how.symmetric else zero
    return scaled(
        numbers, scale, f"{name}.weight_scale", how.block, zero, f"{name}.weight_zero_point", rounds=how.rounds
    )


def _packed(plain: dict[str, Stored], name: str, how: _Matrices) -> Stored:
    words, scale, size = (part(plain, f"{name}.{kind}") for kind in ("weight_packed", "weight_scale", "weight_shape"))
    order = plain.pop(f"{name}.weight_g_idx", None)
    zero = None if how.symmetric else part(plain, f"{name}.weight_zero_point")
    plain.pop(f"{name}.weight_zero_point", None)
    expect(size, f"{name}.weight_shape", ("I32", "I64"), (2,))
    out, into = size[...].tolist()
    groups = group_count(into, how.group, f"{name}.weight_packed")
    expect(words, f"{name}.weight_packed", ("I32",), (out, -(-into * how.bits // 32)))
    expect(scale, f"{name}.weight_scale", FLOATS, *([(1,), (1, 1)] if how.strategy == "tensor" else [(out, groups)]))
    if zero is not None:
        expect(zero, f"{name}.weight_zero_point", ("I32",), (-(-out * how.bits // 32), groups))
    if order is not None:
        expect(order, f"{name}.weight_g_idx", ("I32", "I64"), (into,))

    def read() -> Packed:
        numbers = unpacked(words[...], how.bits, 1)[:, :into]
        zeros = None if zero is None else unpacked(zero[...], how.bits, 0)[:out]
        of = None if order is None or int(order[...].max()) < 0 else order[...].long()
        if of is not None and (int(of.min()) < 0 or int(of.max()) >= groups):
            raise WeightsFailure(f"{name}.weight_g_idx names group {int(of.max())}, and there are {groups}")
        return grouped(KINDS[how.bits], numbers, scale[...].reshape(-1, groups).expand(out, groups), zeros, of)

    return Coded(name, KINDS[how.bits], (out, into), groups, read)
