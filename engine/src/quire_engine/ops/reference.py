"""The kernels in plain torch: short, obviously right, on any device. Every other implementation is tested against these."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_engine.ops import Ops
from quire_engine.runtime.batch import ForwardBatch

__all__ = ["reference_ops"]


def reference_ops() -> Ops:
    return Ops(
        linear=F.linear, rms_norm=rms_norm, rotate=rotate, silu_mul=silu_mul, write_kv=write_kv, attention=attention
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def rotate(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Pairs are (i, i + head_dim / 2), as checkpoints of the llama family have them."""
    cos, sin = table[positions].to(x.dtype)[:, None, :].chunk(2, dim=-1)  # [T, 1, head_dim / 2]
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def write_kv(key: Tensor, value: Tensor, cache: tuple[Tensor, Tensor], places: Tensor) -> None:
    keys, values = cache
    keys.flatten(0, 1)[places] = key
    values.flatten(0, 1)[places] = value


def attention(query: Tensor, cache: tuple[Tensor, Tensor], batch: ForwardBatch, scale: float) -> Tensor:
    """One chunk after the other: gather its pages, mask what lies ahead of each row."""
    keys, values = cache
    block_size = keys.shape[1]
    out = torch.empty_like(query)
    for i, context in enumerate(batch.context_len):
        rows = slice(batch.query_start[i], batch.query_start[i + 1])
        pages = batch.block_tables[i, : -(-context // block_size)]
        q = query[rows].transpose(0, 1)  # [heads, n, head_dim]
        k = keys[pages].flatten(0, 1)[:context].transpose(0, 1)  # [kv_heads, context, head_dim]
        v = values[pages].flatten(0, 1)[:context].transpose(0, 1)
        n = q.shape[1]
        mask = None
        if n > 1:  # row j stands at position context - n + j
            mask = torch.ones(n, context, dtype=torch.bool, device=q.device).tril(context - n)
        attended = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True
        )
        out[rows] = attended[0].transpose(0, 1)
    return out
