"""From q|k|v, or q|k of a latent form, to queries and the cache: norms of heads, rotation, and keys and values to their places.

Grid: a program for each head of each token. Pairs that turn together are (i, i + rotary_dim / 2): a program reads its
head twice, the second time with the halves changed over.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import AttentionForm, LayerCache
from quire_engine.ops.triton.rounding import to_e4m3
from quire_engine.runtime.batch import ForwardBatch

__all__ = ["store_kv"]

MOST, NO_NUMBER = tl.constexpr(448.0), tl.constexpr(127)  # of E4M3


def store_kv(qkv: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
    qkv = qkv.contiguous()
    keys, values = cache
    fp8 = keys.dtype is torch.float8_e4m3fn
    if fp8:  # not every architecture has conversions for it
        keys, values = keys.view(torch.int8), values.view(torch.int8)
    tokens = len(qkv)
    q = torch.empty(tokens, form.heads, form.head_dim, dtype=qkv.dtype, device=qkv.device)
    nothing = qkv  # an address for what the form has not
    _store[(tokens, form.given_heads)](
        qkv, q, keys, values, batch.positions, batch.places,
        nothing if form.rotary is None else form.rotary,
        nothing if form.q_norm is None else form.q_norm,
        nothing if form.k_norm is None else form.k_norm,
        form.epsilon,
        GIVEN=form.given_heads, HEADS=form.heads, KV_HEADS=form.kv_heads, DIM=form.head_dim, BLOCK=triton.next_power_of_2(form.head_dim),
        PAGE=keys.shape[2], ROTARY=0 if form.rotary is None else form.rotary.shape[1],
        Q_NORM=form.q_norm is not None, K_NORM=form.k_norm is not None, FP8=fp8,
        num_warps=1,
    )  # fmt: skip
    return q


@triton.jit
def _store(
    qkv_at, q_at, keys_at, values_at, positions_at, places_at, rotary_at, q_norm_at, k_norm_at, epsilon,
    GIVEN: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr,
    PAGE: tl.constexpr, ROTARY: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, BLOCK)
    there = d < DIM
    half: tl.constexpr = ROTARY // 2
    other = tl.where(d < half, d + half, tl.where(d < ROTARY, d - half, d))
    from_at = qkv_at + (token * GIVEN + head) * DIM
    raw = tl.load(from_at + d, mask=there, other=0.0)
    place = tl.load(places_at + token)
    kv_head = tl.where(head < HEADS + KV_HEADS, head - HEADS, head - HEADS - KV_HEADS)
    stored_at = ((place // PAGE * KV_HEADS + kv_head) * PAGE + place % PAGE) * DIM
    if head >= HEADS + KV_HEADS:
        tl.store(values_at + stored_at + d, _as_cached(raw, FP8), mask=there)
        return
    x, across = raw.to(tl.float32), tl.load(from_at + other, mask=there, other=0.0).to(tl.float32)
    is_query = head < HEADS
    if Q_NORM or K_NORM:
        factor = 1 / tl.sqrt(tl.sum(x * x, 0) / DIM + epsilon)
        if Q_NORM and is_query:
            x *= factor * tl.load(q_norm_at + d, mask=there, other=0.0)
            across *= factor * tl.load(q_norm_at + other, mask=there, other=0.0)
        if K_NORM and not is_query:
            x *= factor * tl.load(k_norm_at + d, mask=there, other=0.0)
            across *= factor * tl.load(k_norm_at + other, mask=there, other=0.0)
    if ROTARY > 0:
        angles = rotary_at + tl.load(positions_at + token) * ROTARY + d % half
        turns = d < ROTARY
        cosine = tl.load(angles, mask=turns, other=1.0)
        sine = tl.load(angles + half, mask=turns, other=0.0)
        x = x * cosine + tl.where(d < half, -across, across) * sine
    if is_query:
        tl.store(q_at + (token * HEADS + head) * DIM + d, x.to(q_at.dtype.element_ty), mask=there)
    else:
        tl.store(keys_at + stored_at + d, _as_cached(x.to(raw.dtype), FP8), mask=there)


@triton.jit
def _as_cached(x, FP8: tl.constexpr):
    if FP8:
        wide = x.to(tl.float32)
        code = to_e4m3(tl.minimum(tl.maximum(wide, -MOST), MOST))
        x = tl.where(wide == wide, code, NO_NUMBER).to(tl.int8)
    return x
