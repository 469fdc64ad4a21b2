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
from quire_engine.ops.packed import Packed
from quire_engine.quant.blocks import CODED, READERS
from quire_engine.quant.stored import Coded, Derived, Parts, Scheme, Stored

__all__ = ["gguf", "stored_tensors"]

TOP = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
OF_LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
BLOCK = 32  # numbers, of those that are `CODED`
IN_CONFIG = "rope_freqs.weight"  # gguf/config.py has read it

_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


def stored_tensors(path: Path) -> dict[str, Stored]:
    """By GGUF's names."""
    file = container.open_container(path)
    return {name: _stored(path, name, tensor) for name, tensor in file.tensors.items()}


def _stored(path: Path, name: str, tensor: container.Tensor) -> Stored:
    if tensor.type not in CODED or len(tensor.shape) != 2:
        return Derived(tensor.shape, partial(_read, path, tensor))
    rows, columns = tensor.shape
    return Coded(name, CODED[tensor.type][0], (rows, columns), columns // BLOCK, partial(_read_codes, path, tensor))


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
    order = torch.arange(rows).view(heads, -1, 2).transpose(1, 2).flatten()
    if isinstance(tensor, Coded):
        return Coded(name, tensor.kind, tensor.shape, tensor.groups, lambda: tensor.packed().rows(order))
    return Derived((rows, *rest), lambda: tensor[...][order])


def _read(path: Path, tensor: container.Tensor) -> Tensor:
    return READERS[tensor.type](_blocks(path, tensor)).reshape(tensor.shape)


def _read_codes(path: Path, tensor: container.Tensor) -> Packed:
    blocks, (kind, codes) = _blocks(path, tensor), CODED[tensor.type]
    scales = blocks[:, :2].contiguous().view(torch.float16).view(tensor.shape[0], -1)
    return Packed.of(kind, codes(blocks).reshape(tensor.shape), scales)


def _blocks(path: Path, tensor: container.Tensor) -> Tensor:
    """[n, bytes of one]"""
    raw = np.fromfile(path, dtype=np.uint8, count=tensor.bytes, offset=tensor.start)
    if len(raw) < tensor.bytes:
        raise WeightsFailure(f"{path} has become shorter while it was read")
    size = {name: each for name, _, each in container.TYPES.values()}[tensor.type]
    return torch.from_numpy(raw).view(-1, size)
