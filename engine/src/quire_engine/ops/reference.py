"""The kernels in plain torch: short, obviously right, on any device. Every other implementation is tested against these."""

from collections.abc import Sequence
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.ops import Activation, AttentionForm, LayerCache, Matrix, Ops
from quire_engine.ops.packed import Kind, Packed
from quire_engine.runtime.batch import ForwardBatch

__all__ = ["linear", "reference_ops"]

LONG_S = (
    1e-3  # of a row's grammar: below, the clock that counts the processor's time alone, a system call, is not asked
)


def reference_ops() -> Ops:
    return Ops(
        pack=lambda weight: weight,
        linear=linear,
        embed=lambda ids, table: F.embedding(ids, table),
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        activate=activate,
        gate=gate,
        store_kv=store_kv,
        attention=attention,
        best=best,
        rule_out=rule_out,
        walk=walk,
        recorded=lambda forward, max_rows: forward,
        keeps=frozenset(Kind),
    )


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
    if isinstance(weight, Packed):
        weight = weight.dense(x.dtype)
    y = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return y.float() if wide else y


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return (weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon))).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    return F.layer_norm(x.float(), weight.shape, weight, bias, epsilon).to(x.dtype)


def activate(x: Tensor, activation: Activation) -> Tensor:
    if activation is Activation.SILU:
        return F.silu(x)
    return F.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    gates, up = gate_up.chunk(2, dim=-1)
    return activate(gates, activation) * up


def rotate(x: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """x [T, heads, D]. Pairs are (i, i + rotary_dim / 2), as checkpoints of the llama family have them."""
    rotary_dim = table.shape[1]
    cos, sin = table[positions][:, None, :].chunk(2, dim=-1)  # [T, 1, rotary_dim / 2]
    turned, rest = x[..., :rotary_dim].float(), x[..., rotary_dim:]
    low, high = turned.chunk(2, dim=-1)
    return torch.cat(((low * cos - high * sin).to(x.dtype), (high * cos + low * sin).to(x.dtype), rest), dim=-1)


def store_kv(qkv: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
    heads = qkv.view(len(qkv), -1, form.head_dim)
    q, k, v = torch.split(heads, [form.heads, form.kv_heads, form.kv_heads], dim=1)
    if form.q_norm is not None:
        q = rms_norm(q, form.q_norm, form.epsilon)
    if form.k_norm is not None:
        k = rms_norm(k, form.k_norm, form.epsilon)
    if form.rotary is not None:
        q, k = rotate(q, form.rotary, batch.positions), rotate(k, form.rotary, batch.positions)
    keys, values = cache
    block_size = keys.shape[2]
    block, row = batch.places // block_size, batch.places % block_size
    keys[block, :, row] = k
    values[block, :, row] = v
    return q


def attention(query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
    """One chunk after the other: gather its pages, then some rows at a time, which bounds the memory of their scores."""
    keys, values = cache
    block_size = keys.shape[2]
    starts, contexts = batch.query_start.tolist(), batch.context_len.tolist()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for i, context in enumerate(contexts):
        pages = batch.block_tables[i, : -(-context // block_size)].long()
        k = keys[pages].transpose(0, 1).flatten(1, 2)[:, None, :context].float()  # [kv_heads, 1, context, D]
        v = values[pages].transpose(0, 1).flatten(1, 2)[:, None, :context].float()
        at_once = max(1, SCORES_AT_ONCE // (form.heads * context))
        for first in range(starts[i], starts[i + 1], at_once):
            rows = slice(first, min(first + at_once, starts[i + 1]))
            out[rows] = _attend(query[rows], k, v, form, position=context - starts[i + 1] + first)
    return out


SCORES_AT_ONCE = 1 << 25  # numbers


def _attend(query: Tensor, k: Tensor, v: Tensor, form: AttentionForm, position: int) -> Tensor:
    """query [n, heads, D], the first row at `position` -> [n, heads, D]. Scores in float32."""
    n, context = len(query), k.shape[2]
    q = query.transpose(0, 1).reshape(form.kv_heads, form.heads // form.kv_heads, n, form.head_dim).float()
    scores = q @ k.transpose(-1, -2) * form.scale  # [kv_heads, group, n, context]
    if form.softcap is not None:
        scores = form.softcap * torch.tanh(scores / form.softcap)
    at = torch.arange(position, position + n, device=q.device)[:, None]
    key_at = torch.arange(context, device=q.device)
    hidden = torch.zeros(n, context, dtype=torch.bool, device=q.device)
    if form.causal:
        hidden |= key_at > at
    if form.window is not None:
        hidden |= key_at <= at - form.window
        if not form.causal:
            hidden |= key_at >= at + form.window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return (weights @ v).flatten(0, 1).transpose(0, 1).to(query.dtype)


def best(logits: Tensor) -> Tensor:
    values, tokens = logits.max(dim=-1)  # a NaN counts as the largest
    return torch.where(values.isfinite(), tokens, -1 - values.isneginf().long())


def rule_out(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    may = (allowed[:, :, None] >> bits).bitwise_and(1).flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(may == 0, float("-inf"))


def walk(matchers: Sequence[Any], tokens: NDArray[np.int64], masks: NDArray[np.int32]) -> NDArray[np.float64]:
    """One after another, for what a matcher needs is in the cache then."""
    seconds = np.empty(len(matchers))
    began, last = thread_time(), perf_counter()
    for row, (matcher, token) in enumerate(zip(matchers, tokens.tolist(), strict=True)):
        shown = matcher is not None and token >= 0
        if matcher is None or (shown and (not matcher.accept_token(token, False) or matcher.is_terminated())):
            masks[row], seconds[row] = 0, -1.0
            continue
        matcher.fill_next_token_bitmask(masks, row, False)
        passed, last = perf_counter() - last, perf_counter()
        seconds[row] = passed if passed < LONG_S else min(passed, thread_time() - began)
    return seconds
