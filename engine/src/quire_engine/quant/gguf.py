"""GGUF's tensors under the names and in the order of a plain checkpoint.

    token_embd, output, output_norm            model.embed_tokens, lm_head, model.norm
    blk.N.attn_q, ffn_gate, attn_norm, ...     model.layers.N.self_attn.q_proj, mlp.gate_proj, input_layernorm, ...

Rows of a llama's q and k are in another order there, for pairs that turn together lie side by side: of each head rows
0 1 2 3 ... are 0 h 1 h+1 ..., with h half a head. Here they come back. Other families keep their own order.
The container is read by gguf/container.py, blocks of numbers by blocks.py.
"""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quire_engine.errors import WeightsFailure
from quire_engine.gguf import container
from quire_engine.quant.blocks import READERS
from quire_engine.quant.stored import Derived, Parts, Scheme, Stored

__all__ = ["gguf", "stored_tensors"]

TOP = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
OF_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
IN_CONFIG = "rope_freqs.weight"  # gguf/config.py has read it

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def stored_tensors(path: Path) -> dict[str, Stored]:
    """By GGUF's names."""
    file = container.open_container(path)
    return {name: Derived(tensor.shape, partial(_read, path, tensor)) for name, tensor in file.tensors.items()}


def gguf(said: Mapping[str, Any]) -> Scheme:
    """`said` is by gguf/config.py."""
    turned = {"attn_q": said["heads"], "attn_k": said["kv_heads"]} if said["family"] == "llama" else {}

    def join(stored: Parts) -> dict[str, Stored]:
        plain: dict[str, Stored] = {}
        for name, tensor in stored.items():
            layer = _LAYER.fullmatch(name)
            kind, _, end = name.rpartition(".")
            if layer is not None and layer[2] in OF_LAYER:
                heads = turned.get(layer[2])
                plain[f"model.layers.{layer[1]}.{OF_LAYER[layer[2]]}.{layer[3]}"] = (
                    tensor if heads is None else _unturned(tensor, name, heads)
                )
            elif name != IN_CONFIG:
                plain[f"{TOP[kind]}.{end}" if kind in TOP else name] = tensor
        return plain

    return join


def _unturned(tensor: Stored, name: str, heads: int) -> Stored:
    rows, *rest = tensor.get_shape()
    if rows % (2 * heads):
        raise WeightsFailure(f"{name} has {rows} rows, which {heads} heads cannot share")
    return Derived((rows, *rest), lambda: torch.unflatten(tensor[...], 0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2))


def _read(path: Path, tensor: container.Tensor) -> Tensor:
    raw = np.fromfile(path, dtype=np.uint8, count=tensor.bytes, offset=tensor.start)
    if len(raw) < tensor.bytes:
        raise WeightsFailure(f"{path} has become shorter while it was read")
    size = {name: each for name, _, each in container.TYPES.values()}[tensor.type]
    return READERS[tensor.type](torch.from_numpy(raw).view(-1, size)).reshape(tensor.shape)
