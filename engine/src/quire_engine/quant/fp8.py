"""FP8 as checkpoints have it natively ("quant_method": "fp8"): e4m3, a scale for a matrix, a row, or a block.

    NAME.weight            F8_E4M3 [out, in]
    NAME.weight_scale_inv  float [out / b, in / b], rounded up    with weight_block_size [b, b]
    NAME.weight_scale      float [] or [1] or [out, 1]            without

    weight = q * scale     under both names

Scales of activations and of the KV cache are left: both are computed unquantized, which is no less exact.
"""

from collections.abc import Mapping
from typing import Any

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.quant.scaled import Block, scaled
from quire_engine.quant.stored import Parts, Scheme, Stored, part

__all__ = ["IDLE", "fp8"]

IDLE = (".input_scale", ".activation_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale", ".kv_scale")


def fp8(said: Mapping[str, Any]) -> Scheme:
    form = said.get("fmt") or said.get("weight_format") or "e4m3"
    if form != "e4m3":
        raise ConfigFailure(f"FP8 of the form {form} is not supported yet, only e4m3")
    size = said.get("weight_block_size")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    ):
        raise ConfigFailure(f"weight_block_size of quantization_config is {size!r}, and should be two numbers")
    block: Block | None = None if size is None else (size[0], size[1])

    def join(stored: Parts) -> dict[str, Stored]:
        plain = {name: tensor for name, tensor in stored.items() if not name.endswith(IDLE)}
        for name, tensor in stored.items():
            if name.endswith(".weight") and tensor.get_dtype() == "F8_E4M3":
                if len(tensor.get_shape()) != 2:
                    raise WeightsFailure(f"{name} is {tensor.get_shape()}, and only matrices of FP8 can be read")
                scale = f"{name}_scale" if block is None else f"{name}_scale_inv"
                plain[name] = scaled(tensor, part(plain, scale), scale, block, rounds=True)
        return plain

    return join
