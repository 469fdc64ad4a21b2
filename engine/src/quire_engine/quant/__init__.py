"""Quantized checkpoints. One visible table: what config.json calls a method -> what reads it.

A scheme makes a checkpoint's stored tensors look like plain ones: several that belong together become one, of the
name and shape that the model asks for, either a tensor that is dequantised when it is read, or a matrix in few bits
(`Coded`), which stays so where kernels take it (ops/packed.py). So no model knows of quantization. A scheme owns its
layout: the head of its module draws it, and what it does not read it refuses by name. What is no part of the layout stays
as it is, for `Weights` to find left over.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quire_engine.errors import ConfigFailure
from quire_engine.ops.packed import Kind
from quire_engine.quant.awq import awq
from quire_engine.quant.compressed import compressed_tensors
from quire_engine.quant.fp8 import fp8
from quire_engine.quant.gguf import gguf
from quire_engine.quant.gptq import gptq
from quire_engine.quant.mxfp4 import mxfp4
from quire_engine.quant.packed import KINDS, number
from quire_engine.quant.stored import Scheme

__all__ = ["SCHEMES", "form_of", "scheme_of"]

SCHEMES: dict[str, Callable[[Mapping[str, Any]], Scheme]] = {
    "awq": awq,
    "gptq": gptq,
    "fp8": fp8,
    "compressed-tensors": compressed_tensors,
    "gguf": gguf,
    "mxfp4": mxfp4,
}


def scheme_of(said: Mapping[str, Any] | None, wanted: str = "auto") -> Scheme | None:
    """`said` is the checkpoint's quantization_config, `wanted` the user's option, which may say the same."""
    name = None if said is None else str(said["quant_method"])
    if wanted not in ("auto", name):
        seen = "is not quantized" if name is None else f"is quantized by {name}"
        raise ConfigFailure(
            f"--quantization {wanted}, but the checkpoint {seen}: leave the option out, or name a checkpoint of that method"
        )
    if said is None or name is None:
        return None
    if name not in SCHEMES:
        raise ConfigFailure(f"checkpoints quantized by {name} are not supported yet, only {', '.join(SCHEMES)}")
    return SCHEMES[name](said)


def form_of(said: Mapping[str, Any] | None) -> tuple[Kind, int] | None:
    """For a model whose weights are made up: their kind, and the size of their groups (-1: rows). None: plain ones, also
    where quantization_config says more than that."""
    method = None if said is None else said["quant_method"]
    if said is None or method not in ("awq", "gptq", "fp8"):
        return None
    SCHEMES[method](said)  # refuses what it does not read
    if method == "fp8":
        return Kind.FP8, (said.get("weight_block_size") or [-1, -1])[1]
    return KINDS[number(said, "bits", "w_bit")], number(said, "group_size", "q_group_size")
