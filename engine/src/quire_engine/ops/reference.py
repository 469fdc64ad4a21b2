"""The kernels in plain torch: short, obviously right, on any device. Every other implementation is tested against these."""

from collections.abc import Callable, Iterator
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.ops import IN_PROMPT, Activation, AttentionForm, LayerCache, Matrices, Matrix, Ops
from quire_engine.ops.drawing import draw
from quire_engine.ops.packed import Kind, Packed
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.sampling.ordering import best_first
from quire_engine.sampling.rows import in_blocks
from quire_engine.spec import Routing

__all__ = ["expert_by_expert", "linear", "penalise", "per_head", "reference_ops", "route", "score"]

LIMIT, STEEPNESS = 7.0, 1.702  # of gpt-oss
LONG_S = 1e-3  # of a grammar: below, the clock of the processor's time, a system call, is not asked


def reference_ops() -> Ops:
    return Ops(
        pack=lambda weight: weight,
        linear=linear,
        embed=lambda ids, table: F.embedding(ids, table),
        pack_experts=pack_experts,
        route=route,
        mix=mix,
        per_head=per_head,
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        activate=activate,
        gate=gate,
        store_kv=store_kv,
        attention=attention,
        best=best,
        rule_out=rule_out,
        walker=_Walker,
        penalise=penalise,
        draw=draw,
        score=score,
        recorded=lambda forward, max_rows: forward,
        keeps=frozenset(Kind),
        caches_fp8=True,
    )


def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
    if isinstance(weight, Packed):
        weight = weight.dense(x.dtype)
    y = F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    return y.float() if wide else y


def pack_experts(weights: Iterator[Tensor], count: int) -> Matrices:
    """[count, out, in], of which there is no second copy at any time."""
    first = next(weights)
    packed = torch.empty((count, *first.shape), dtype=first.dtype, device=first.device)
    packed[0] = first
    for number, weight in enumerate(weights, 1):
        packed[number] = weight
    return packed


def route(likings: Tensor, routing: Routing, preference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    likelihood = _sigmoid(likings) if routing.sigmoid else likings.softmax(dim=-1)
    ranked = likelihood if preference is None else likelihood + preference
    if routing.chosen_groups < routing.groups:
        grouped = ranked.view(len(ranked), routing.groups, -1)
        merit = grouped.sort(dim=-1, descending=True).values[..., : routing.judged_by].sum(dim=-1)
        groups = _first_best(merit, routing.chosen_groups)
        beaten = torch.ones_like(merit, dtype=torch.bool).scatter(-1, groups, False)
        ranked = grouped.masked_fill(beaten[..., None], float("-inf")).flatten(-2)
    choices = _first_best(ranked, routing.chosen).sort(dim=-1).values
    shares = likelihood.gather(-1, choices)
    if routing.renormalised:
        shares = shares / shares.sum(dim=-1, keepdim=True)
    return choices, shares * routing.scale


def _sigmoid(x: Tensor) -> Tensor:
    """By the softmax of x and 0: torch's own has other last bits in a vector than at the end of one, and so by the row."""
    return torch.stack((x, torch.zeros_like(x)), dim=-1).softmax(dim=-1)[..., 0]


def _first_best(of: Tensor, count: int) -> Tensor:
    """Where the largest are; among equals the first."""
    return of.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def mix(
    x: Tensor,
    routed: tuple[Tensor, Tensor],
    gate_up: Matrices,
    down: Matrices,
    activation: Activation,
    biases: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    def expert(rows: Tensor, number: int) -> Tensor:
        first, second = (None, None) if biases is None else (each[number] for each in biases)
        return linear(gate(linear(rows, gate_up[number], first), activation), down[number], second)

    return expert_by_expert(expert, x, routed, len(gate_up))


def per_head(x: Tensor, weights: Matrices) -> Tensor:
    return torch.bmm(x.transpose(0, 1), weights.transpose(1, 2)).transpose(0, 1)


def expert_by_expert(
    expert: Callable[[Tensor, int], Tensor], x: Tensor, routed: tuple[Tensor, Tensor], count: int
) -> Tensor:
    """Each expert is given the rows that chose it. Choices ascend, so that this adds a row's in their order."""
    choices, shares = routed
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for number in range(count):
        rows, rank = (choices == number).nonzero(as_tuple=True)
        if len(rows):
            out.index_add_(0, rows, expert(x[rows], number).float() * shares[rows, rank, None])
    return out.to(x.dtype)


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
    if activation is Activation.GPT_OSS:
        low = x.clamp(max=LIMIT)
        return low * torch.sigmoid(low * STEEPNESS)
    return F.gelu(x, approximate="tanh" if activation is Activation.GELU_TANH else "none")


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    gates, up = gate_up.chunk(2, dim=-1)
    if activation is Activation.GPT_OSS:
        up = up.clamp(-LIMIT, LIMIT) + 1
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
    q, k, v = heads.tensor_split([form.heads, form.heads + form.kv_heads], dim=1)
    if form.q_norm is not None:
        q = rms_norm(q, form.q_norm, form.epsilon)
    if form.k_norm is not None:
        k = rms_norm(k, form.k_norm, form.epsilon)
    if form.rotary is not None:
        q, k = rotate(q, form.rotary, batch.positions), rotate(k, form.rotary, batch.positions)
    keys, values = cache
    block_size = keys.shape[2]
    block, row = batch.places // block_size, batch.places % block_size
    for stored, new in [(keys, k)] if form.latent else [(keys, k), (values, v)]:
        if stored.dtype is torch.float8_e4m3fn:  # torch stores it as bytes alone
            stored.view(torch.uint8)[block, :, row] = (
                new.clamp(-LARGEST_FP8, LARGEST_FP8).to(stored.dtype).view(torch.uint8)
            )
        else:
            stored[block, :, row] = new
    return q


def attention(query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
    """One chunk after the other: gather its pages, then some rows at a time, which bounds the memory of their scores."""
    block_size = cache[0].shape[2]
    starts, contexts = batch.query_start.tolist(), batch.context_len.tolist()
    out = query.new_empty(len(query), form.heads, form.value_dim)
    for i, context in enumerate(contexts):
        pages = batch.block_tables[i, : -(-context // block_size)].long()
        k = _read(cache[0], pages)[:, None, :context]  # [kv_heads, 1, context, D]
        v = k[..., -form.latent :] if form.latent else _read(cache[1], pages)[:, None, :context]
        at_once = max(1, SCORES_AT_ONCE // (form.heads * context))
        for first in range(starts[i], starts[i + 1], at_once):
            rows = slice(first, min(first + at_once, starts[i + 1]))
            out[rows] = _attend(query[rows], k, v, form, position=context - starts[i + 1] + first)
    return out


SCORES_AT_ONCE = 1 << 25  # numbers
LARGEST_FP8 = 448.0


def _read(cached: Tensor, pages: Tensor) -> Tensor:
    """[blocks, kv_heads, block_size, D] -> [kv_heads, tokens, D] float32"""
    raw = cached.view(torch.uint8) if cached.dtype is torch.float8_e4m3fn else cached
    return raw[pages].view(cached.dtype).transpose(0, 1).flatten(1, 2).float()


def _attend(query: Tensor, k: Tensor, v: Tensor, form: AttentionForm, position: int) -> Tensor:
    """query [n, heads, D], the first row at `position` -> [n, heads, D]. Scores in float32."""
    n, context = len(query), k.shape[2]
    q = query.transpose(0, 1).reshape(form.kv_heads, form.heads // form.kv_heads, n, form.head_dim).float()
    scores = q @ k.transpose(-1, -2) * form.scale  # [kv_heads, group, n, context]
    if form.softcap is not None:
        scores = form.softcap * torch.tanh(scores / form.softcap)
    at = torch.arange(position, position + n, device=q.device)[:, None]
    key_at = torch.arange(context, device=q.device)
    of_heads = (form.kv_heads, form.heads // form.kv_heads, 1, 1)
    if form.slopes is not None:
        scores = scores - form.slopes.view(of_heads) * (at - key_at).abs()
    hidden = torch.zeros(n, context, dtype=torch.bool, device=q.device)
    if form.causal:
        hidden |= key_at > at
    if form.window is not None:
        hidden |= key_at <= at - form.window
        if not form.causal:
            hidden |= key_at >= at + form.window
    scores = scores.masked_fill(hidden, float("-inf"))
    if form.sinks is not None:
        scores = torch.cat((scores, form.sinks.view(of_heads).expand(-1, -1, n, 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., :context]
    return (weights @ v).flatten(0, 1).transpose(0, 1).to(query.dtype)


def best(logits: Tensor) -> Tensor:
    values, tokens = logits.max(dim=-1)  # a NaN counts as the largest
    return torch.where(values.isfinite(), tokens, -1 - values.isneginf().long())


def rule_out(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    may = (allowed[:, :, None] >> bits).bitwise_and(1).flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(may == 0, float("-inf"))


class _Walker:
    """One after another, for what a matcher needs is in the cache then."""

    def __init__(self, slots: int, words: int) -> None:
        self.masks, self.seconds = np.zeros((slots, words), np.int32), np.zeros(slots)
        self._matchers: list[Any] = [None] * slots
        self._trouble = False

    def put(self, slot: int, matcher: Any) -> None:
        self._matchers[slot] = matcher

    def begin(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self._trouble = False
        began, last = thread_time(), perf_counter()
        for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
            matcher = self._matchers[slot]
            shown = matcher is not None and token >= 0
            if matcher is None or (shown and (not matcher.accept_token(token, False) or matcher.is_terminated())):
                self.masks[slot], self.seconds[slot], self._trouble = 0, -1.0, True
                continue
            matcher.fill_next_token_bitmask(self.masks, slot, False)
            passed, last = perf_counter() - last, perf_counter()
            if passed > LONG_S:
                passed, self._trouble = min(passed, thread_time() - began), True
            self.seconds[slot] = passed

    def end(self) -> bool:
        return self._trouble


def penalise(logits: Tensor, rows: Tensor, seen: Tensor, slots: Tensor, strength: Tensor) -> None:
    for block in in_blocks(len(rows), logits.shape[-1], logits.device):
        index = rows[block]
        logits[index] = _penalised(logits[index], seen[slots[block]], strength[block])


def _penalised(logits: Tensor, seen: Tensor, strength: Tensor) -> Tensor:
    """[R, V], [R, V], [R, 3] -> [R, V]"""
    repetition, frequency, presence = strength[:, :, None].unbind(dim=1)  # [R, 1] each
    weakened = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen > 0, weakened, logits)
    count = seen & (IN_PROMPT - 1)
    return logits - (frequency * count + presence * (count > 0))


def score(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])  # [R, 1]
    rank = (logprobs > chosen).sum(dim=-1, keepdim=True) + 1
    values, ids = best_first(logprobs, top) if top else (logprobs[:, :0], rank[:, :0])
    return torch.cat((chosen, values), dim=-1), torch.cat((tokens[:, None], rank, ids), dim=-1)
