"""Attention: project, store, look back, project."""

from dataclasses import replace
from typing import Protocol

from torch import Tensor

from quire_engine.layers.linear import Linear
from quire_engine.ops import AttentionForm, LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["Attention", "Cache", "attention_form"]


class Cache(Protocol):
    """What a model wants of the KV cache."""

    def layer(self, index: int) -> LayerCache: ...


def attention_form(
    spec: ModelSpec,
    layer: int,
    rotary: Tensor | None = None,
    *,
    causal: bool = True,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    heads: int | None = None,
    latent: int | None = None,
) -> AttentionForm:
    """Of all heads, if it is not said of how many."""
    return AttentionForm(
        heads=heads or spec.shape.heads,
        kv_heads=spec.shape.kv_heads,
        head_dim=spec.shape.cached[0],
        scale=spec.attention_scale,
        causal=causal,
        window=spec.windows[layer],
        softcap=spec.attention_softcap,
        slopes=slopes,
        latent=latent,
        sinks=sinks,
        rotary=rotary,
        q_norm=q_norm,
        k_norm=k_norm,
        epsilon=spec.norm_epsilon,
    )


class Attention:
    def __init__(self, ops: Ops, form: AttentionForm, qkv: Linear, out: Linear) -> None:
        """`form` counts all heads; of these a rank has its share, and its part of the projections."""
        heads, kv_heads = ops.ranks.share(form.heads), ops.ranks.share(form.kv_heads)
        own = slice(heads.start, heads.start + heads.size)
        slopes, sinks = (None if each is None else each[own].contiguous() for each in (form.slopes, form.sinks))
        self._ops = ops
        self._form = replace(form, heads=heads.size, kv_heads=kv_heads.size, slopes=slopes, sinks=sinks)
        self._qkv = qkv
        self._out = out

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        query = self._ops.store_kv(self._qkv(x), self._form, cache, batch)
        return self._out(self._ops.attention(query, self._form, cache, batch).flatten(1))
