"""GGUF files of small models, by llama.cpp's own library: it packs the numbers, and is the oracle of what they stand for.

It packs no K blocks: those are random bytes with sensible scales, and the model is what they happen to mean.
"""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from fakes.checkpoints import DECODER, save_case
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

__all__ = ["PACKED", "blocks_of", "save_gguf"]

PACKED = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}  # the library can
SCALES_AT = {
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # in a block: its scale, and what its leasts are multiplied by

NAMES = {
    "model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def blocks_of(kind: str, rows: int, columns: int) -> np.ndarray[Any, Any]:
    """Random ones: uint8 [rows, bytes]."""
    numbers, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    raw = np.random.default_rng(rows + columns).integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    for at, scale in zip(SCALES_AT[kind], (0.0006, 0.0045), strict=False):
        raw[:, :, at : at + 2] = np.array([scale], dtype=np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def save_gguf(case: str, kind: str, folder: Path, **metadata: Any) -> Any:
    """Write `case` of fakes.checkpoints to folder/model.gguf, its matrices of this kind; what transformers computes of it.

    What is left in `folder` is the plain checkpoint's config.json, as plain.json.
    """
    oracle = save_case(case, folder)
    config = json.loads((folder / "config.json").read_text())
    file = gguf.GGUFWriter(folder / "model.gguf", config["model_type"])
    describe(file, config)
    for name, (form, value) in metadata.items():
        file.add_key_value(name.replace("__", "."), value, form)
    plain = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        short = rename(name)
        if tensor.ndim == 1:
            file.add_tensor(short, tensor.numpy())
            continue
        raw = gguf.quants.quantize(tensor.numpy(), Type[kind]) if kind in PACKED else blocks_of(kind, *tensor.shape)
        plain[name] = torch.from_numpy(gguf.quants.dequantize(raw, Type[kind]).astype(np.float32))
        file.add_tensor(short, turned(raw, short, config), raw_dtype=Type[kind])
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    (folder / "model.safetensors").unlink()
    (folder / "config.json").rename(folder / "plain.json")
    oracle.load_state_dict(plain, strict=False)
    oracle.tie_weights()
    return oracle


def describe(file: Any, config: dict[str, Any]) -> None:
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(config["num_attention_heads"])
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config["rope_parameters"]
    file.add_rope_freq_base(rope["rope_theta"])
    if config.get("head_dim"):
        file.add_key_length(config["head_dim"])
    if rope["rope_type"] == "linear":
        file.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        file.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        file.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        file.add_rope_scaling_factor(rope["factor"])
        file.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "llama3":
        file.add_tensor("rope_freqs.weight", divisors(rope, config["head_dim"]))


def divisors(rope: dict[str, Any], size: int) -> np.ndarray[Any, Any]:
    """As llama.cpp's converter writes them for Llama 3.1."""
    original = rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    out = []
    for i in range(0, size, 2):
        length = 2 * np.pi * rope["rope_theta"] ** (i / size)
        smooth = (original / length - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        if length < high:
            out.append(1.0)
        elif length > low:
            out.append(rope["factor"])
        else:
            out.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def rename(name: str) -> str:
    module, _, end = name.rpartition(".")
    if module in NAMES:
        return f"{NAMES[module]}.{end}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{end}"


def turned(raw: np.ndarray[Any, Any], name: str, config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A llama's rows of q and k in the order of pairs, as llama.cpp's converter puts them."""
    if config["model_type"] != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return raw
    heads = config["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
    return raw.reshape(heads, 2, len(raw) // heads // 2, -1).swapaxes(1, 2).reshape(raw.shape)


assert DECODER["hidden_size"] % 32 == 0
