"""Attention over latent numbers (MLA): the keys and values of all heads are made of a few hundred numbers of a token, and those
are what the cache has.

    key of head h      [ K_h latent | rotated, the same for all heads ]
    value of head h    V_h latent

They are never made. The score of a query with K_h latent is that of K_h^T query with the latent numbers themselves. So queries
become latent too, all heads look at the one key [ rotated | latent ], whose latent part is its value, and what comes of that
goes through V_h.
"""

import torch
from torch import Tensor

from quire_engine.layers.attention import attention_form
from quire_engine.layers.linear import Linear
from quire_engine.layers.norms import RMSNorm
from quire_engine.models.weights import Weights
from quire_engine.ops import LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["LatentAttention"]

EPSILON = 1e-6  # of its norms, whatever that of the others is


class LatentAttention:
    """`name`.self_attn. A rank has its share of the heads, and all latent numbers. T tokens."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int, rotary: Tensor | None
    ) -> None:
        shape, rope, name = spec.shape, spec.ropes[layer], f"{name}.self_attn"
        hidden, latent, asked = shape.hidden, shape.latent, shape.latent_query
        heads, plain = ops.ranks.share(shape.heads), shape.head_dim - shape.rotary
        self._ops = ops
        self._form = attention_form(spec, layer, rotary, heads=heads.size, latent=latent)
        self._down_to = [asked, latent, shape.rotary]
        self._query_of = [plain, shape.rotary]
        self._interleaved = rope is not None and rope.interleaved

        q = ops.ranks.share(shape.heads, shape.head_dim)
        first, second = (f"{name}.q_a_proj", asked), (f"{name}.kv_a_proj_with_mqa", latent + shape.rotary)
        names, sizes = zip(*([first, second] if asked else [second]), strict=True)
        self._down = Linear(ops, weights, *names, out=sizes, into=hidden, bias=shape.qkv_bias)
        self._norm_query = RMSNorm(ops, weights, f"{name}.q_a_layernorm", asked, EPSILON) if asked else None
        self._norm_latent = RMSNorm(ops, weights, f"{name}.kv_a_layernorm", latent, EPSILON)
        query = f"{name}.q_b_proj" if asked else f"{name}.q_proj"
        self._query = Linear(ops, weights, query, out=(q,), into=asked or hidden)

        made = plain + shape.value_dim
        own = ops.ranks.share(shape.heads, made)
        both = weights.take(f"{name}.kv_b_proj.weight", (own.whole, latent), part=own).view(heads.size, made, latent)
        self._to_latent = ops.pack_experts((each[:plain].T.contiguous() for each in both), heads.size)
        self._to_value = ops.pack_experts((each[plain:].contiguous() for each in both), heads.size)
        out = ops.ranks.share(shape.heads, shape.value_dim)
        self._out = Linear(ops, weights, f"{name}.o_proj", out=(hidden,), into=out, bias=shape.out_bias)

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        ops, form = self._ops, self._form
        asked, latent, rotated = torch.split(self._down(x), self._down_to, dim=-1)
        query = self._query(x if self._norm_query is None else self._norm_query(asked))
        plain, turned = torch.split(query.view(len(x), form.heads, -1), self._query_of, dim=-1)

        rotary = self._query_of[1]
        given = x.new_empty(len(x), form.heads + 1, form.head_dim)  # queries, then the key
        given[:, :-1, :rotary] = self._in_halves(turned)
        given[:, -1, :rotary] = self._in_halves(rotated)
        given[:, :-1, rotary:] = ops.per_head(plain, self._to_latent)
        given[:, -1, rotary:] = self._norm_latent(latent)
        seen = ops.attention(ops.store_kv(given.flatten(1), form, cache, batch), form, cache, batch)
        return self._out(ops.per_head(seen, self._to_value).flatten(1))

    def _in_halves(self, x: Tensor) -> Tensor:
        """What is turned together stands side by side in most of these checkpoints; kernels want it in two halves."""
        return x.reshape(*x.shape[:-1], -1, 2).transpose(-1, -2).flatten(-2) if self._interleaved else x
