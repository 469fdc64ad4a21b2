"""Small quantized llamas on disk, each with the model that it stands for.

Written from the published layouts, and in other words than quire_engine.quant reads them: the numbers are computed first,
with what they stand for, and then put into words one by one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fakes.checkpoints import rename_tensors, save_llama
from safetensors.torch import load_file

__all__ = ["METHODS", "Method", "matrices", "save_quantized"]

Array = np.ndarray[Any, Any]
Written = tuple[dict[str, Any], Array]  # tensors by the end of their name, and the matrix that they stand for
GROUP = 32


@dataclass(frozen=True)
class Method:
    said: dict[str, Any]  # quantization_config
    write: Callable[[Array], Written]  # of a matrix [out, in]
    error: float  # most that a weight may be off, as a share of the largest of its matrix


def save_quantized(name: str, folder: Path) -> Any:
    """Write a llama to `folder`, its projections quantized; what transformers makes of the dequantised ones."""
    method, oracle = METHODS[name], save_llama(folder, tie_word_embeddings=False)
    stored, plain = {}, {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            parts, matrix = method.write(tensor.numpy())
            module = key.removesuffix(".weight")
            stored |= {f"{module}.{end}": torch.as_tensor(part) for end, part in parts.items()}
            plain[key] = torch.from_numpy(matrix)
        else:
            stored[key] = tensor
    rename_tensors(folder, lambda _: stored)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": method.said}))
    oracle.load_state_dict(plain, strict=False)
    return oracle


def matrices(oracle: Any) -> dict[str, torch.Tensor]:
    """Those that are quantized."""
    return {name: tensor for name, tensor in oracle.state_dict().items() if name.endswith("_proj.weight")}


# --- numbers ------------------------------------------------------------------------------------------------------


def in_groups(matrix: Array, of: Array, bits: int, symmetric: bool) -> tuple[Array, Array, Array]:
    """Numbers [out, in] from 0, and of each group zeros [out, groups] and scales in float16."""
    groups, most = int(of.max()) + 1, 2**bits - 1
    numbers = np.zeros(matrix.shape, dtype=np.int64)
    zeros = np.zeros((len(matrix), groups), dtype=np.int64)
    scales = np.zeros((len(matrix), groups), dtype=np.float16)
    for group in range(groups):
        part = matrix[:, of == group]
        least, largest = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            largest = np.maximum(largest, -least)
            least = -largest
        scale = ((largest - least) / most).astype(np.float16)
        zero = (
            np.full(len(matrix), 2 ** (bits - 1))
            if symmetric
            else np.round(-least / scale).astype(np.int64).clip(0, most)
        )
        numbers[:, of == group] = np.round(part / scale[:, None].astype(np.float32)).clip(
            -zero[:, None], most - zero[:, None]
        )
        numbers[:, of == group] += zero[:, None]
        zeros[:, group], scales[:, group] = zero, scale
    return numbers, zeros, scales


def meant(numbers: Array, zeros: Array, scales: Array, of: Array) -> Array:
    return ((numbers - zeros[:, of]) * scales.astype(np.float32)[:, of]).astype(np.float32)


def in_words(rows: Array, bits: int, order: list[int] | None = None) -> Array:
    """[n, m] -> int32 [n, m * bits / 32], number by number."""
    per_word = 32 // bits
    out = np.zeros((len(rows), rows.shape[1] // per_word), dtype=np.uint32)
    for column in range(out.shape[1]):
        for place, which in enumerate(order or range(per_word)):
            out[:, column] |= rows[:, column * per_word + which].astype(np.uint32) << np.uint32(bits * place)
    return out.view(np.int32)


# --- methods ------------------------------------------------------------------------------------------------------


def awq(matrix: Array) -> Written:
    of = np.arange(matrix.shape[1]) // GROUP
    numbers, zeros, scales = in_groups(matrix, of, 4, symmetric=False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    parts = {
        "qweight": in_words(numbers.T, 4, order),
        "qzeros": in_words(zeros.T, 4, order),
        "scales": scales.T.copy(),
    }
    return parts, meant(numbers, zeros, scales, of)


def gptq(bits: int, *, act: bool = False, v2: bool = False, symmetric: bool = False, whole: bool = False) -> Any:
    def write(matrix: Array) -> Written:
        into = matrix.shape[1]
        of = np.zeros(into, dtype=np.int64) if whole else np.arange(into) // GROUP
        if act:
            of = of[np.random.default_rng(0).permutation(into)]
        numbers, zeros, scales = in_groups(matrix, of, bits, symmetric)
        stored = zeros if v2 else (zeros - 1) % 2**bits
        parts = {
            "qweight": in_words(numbers, bits).T.copy(),
            "qzeros": in_words(stored.T, bits),
            "scales": scales.T.copy(),
            "g_idx": of.astype(np.int32),
        }
        if not act:
            del parts["g_idx"]  # some checkpoints have none
        return parts, meant(numbers, zeros, scales, of)

    return write


def floats(matrix: Array, scale: Array) -> tuple[torch.Tensor, Array]:
    """e4m3 by torch's rounding."""
    numbers = torch.from_numpy(matrix / scale).to(torch.float8_e4m3fn)
    return numbers, numbers.float().numpy() * scale


def fp8(by: str, end: str = "weight_scale") -> Any:
    def write(matrix: Array) -> Written:
        scale, wide = scale_by(matrix, by, 448)
        numbers, plain = floats(matrix, wide)
        parts = {"weight": numbers, end: scale}
        if by == "tensor":
            parts["input_scale"] = np.array([0.5], dtype=np.float32)
        return parts, plain

    return write


def int8(by: str, *, symmetric: bool = True) -> Any:
    def write(matrix: Array) -> Written:
        scale, wide = scale_by(matrix, by, 127)
        zero: Any = 0
        if not symmetric:  # from -128 for the least to 127 for the largest of each row
            scale = (matrix.max(1, keepdims=True) - matrix.min(1, keepdims=True)) / 255
            wide = np.broadcast_to(scale, matrix.shape)
            zero = np.round(-128 - matrix.min(1, keepdims=True) / scale)
        numbers = (np.round(matrix / wide) + zero).clip(-128, 127)
        parts = {"weight": numbers.astype(np.int8), "weight_scale": scale}
        if not symmetric:
            parts["weight_zero_point"] = zero.astype(np.int8)
        return parts, ((numbers - zero) * wide).astype(np.float32)

    return write


def scale_by(matrix: Array, by: str, most: int) -> tuple[Array, Array]:
    """The scale as it is stored, and one for each number."""
    rows, columns = matrix.shape
    if by == "tensor":
        scale = np.abs(matrix).max().reshape(1) / most
        return scale.astype(np.float32), np.full(matrix.shape, scale[0], dtype=np.float32)
    if by == "channel":
        scale = np.abs(matrix).max(1, keepdims=True) / most
        return scale.astype(np.float32), np.broadcast_to(scale, matrix.shape).astype(np.float32)
    tall, broad = (1, GROUP) if by == "group" else BLOCK
    scale = np.zeros((-(-rows // tall), -(-columns // broad)), dtype=np.float32)
    wide = np.zeros(matrix.shape, dtype=np.float32)
    for i in range(len(scale)):
        for j in range(scale.shape[1]):
            block = (slice(i * tall, (i + 1) * tall), slice(j * broad, (j + 1) * broad))
            wide[block] = scale[i, j] = np.abs(matrix[block]).max() / most
    return scale, wide


BLOCK = (48, 40)  # cut at both edges of most matrices here


def packed(bits: int, *, symmetric: bool, act: bool = False, whole: bool = False) -> Any:
    def write(matrix: Array) -> Written:
        into = matrix.shape[1]
        of = np.zeros(into, dtype=np.int64) if whole else np.arange(into) // GROUP
        if act:
            of = of[np.random.default_rng(0).permutation(into)]
        numbers, zeros, scales = in_groups(matrix, of, bits, symmetric)
        parts = {
            "weight_packed": in_words(numbers, bits),
            "weight_scale": scales,
            "weight_shape": np.array(matrix.shape, dtype=np.int64),
        }
        if not symmetric:
            parts["weight_zero_point"] = in_words(zeros.T, bits).T.copy()
        if act:
            parts["weight_g_idx"] = of.astype(np.int32)
        return parts, meant(numbers, zeros, scales, of)

    return write


def compressed(form: str, **weights: Any) -> dict[str, Any]:
    given = {
        "num_bits": 8,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
        "group_size": None,
    }
    acts = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {
        "targets": ["Linear"],
        "weights": {**given, **weights},
        "input_activations": acts,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}, "quantization_status": "compressed",
    }  # fmt: skip


AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}

METHODS: dict[str, Method] = {
    "awq": Method(AWQ, awq, 0.08),
    "gptq-4": Method(GPTQ, gptq(4), 0.08),
    "gptq-4-v2": Method({**GPTQ, "checkpoint_format": "gptq_v2"}, gptq(4, v2=True), 0.08),
    "gptq-4-desc-act": Method({**GPTQ, "desc_act": True, "sym": True}, gptq(4, act=True, symmetric=True), 0.08),
    "gptq-8": Method({**GPTQ, "bits": 8}, gptq(8), 0.005),
    "gptq-8-rows": Method({**GPTQ, "bits": 8, "group_size": -1}, gptq(8, whole=True), 0.005),
    "fp8-tensor": Method({**FP8, "activation_scheme": "static"}, fp8("tensor"), 0.04),
    "fp8-channel": Method(FP8, fp8("channel"), 0.04),
    "fp8-block": Method({**FP8, "weight_block_size": list(BLOCK)}, fp8("block", "weight_scale_inv"), 0.04),
    "compressed-fp8-tensor": Method(compressed("float-quantized", type="float", strategy="tensor"), fp8("tensor"), 0.04),
    "compressed-fp8-channel": Method(compressed("float-quantized", type="float"), fp8("channel"), 0.04),
    "compressed-fp8-block": Method(
        compressed("float-quantized", type="float", strategy="block", block_structure=list(BLOCK)), fp8("block"), 0.04
    ),
    "compressed-int8": Method(compressed("int-quantized"), int8("channel"), 0.005),
    "compressed-int8-asymmetric": Method(compressed("int-quantized", symmetric=False), int8("channel", symmetric=False), 0.01),
    "compressed-int8-group": Method(compressed("int-quantized", strategy="group", group_size=GROUP), int8("group"), 0.005),
    "compressed-packed-4": Method(
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP), packed(4, symmetric=True), 0.08
    ),
    "compressed-packed-4-ordered": Method(
        compressed("pack-quantized", num_bits=4, strategy="group", group_size=GROUP, symmetric=False, actorder="group"),
        packed(4, symmetric=False, act=True), 0.08,
    ),
    "compressed-packed-8": Method(compressed("pack-quantized"), packed(8, symmetric=True, whole=True), 0.005),
}  # fmt: skip
