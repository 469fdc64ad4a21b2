"""BLOOM: no positions, but scores that fall with the distance (ALiBi); LayerNorm, biases everywhere. Shapes: T tokens, H hidden.

Its checkpoints keep q, k and v of a head side by side, head after head; here they are read as q of all heads, k, and v.
"""

import math
from functools import partial

import torch
from torch import Tensor

from quire_engine.layers.attention import Attention, Cache, attention_form
from quire_engine.layers.embedding import Embedding, Head
from quire_engine.layers.feed_forward import Plain
from quire_engine.layers.linear import Linear
from quire_engine.layers.norms import LayerNorm
from quire_engine.layers.stage import own_layers
from quire_engine.models.weights import Weights
from quire_engine.ops import LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.ranks import Part
from quire_engine.spec import ModelSpec

__all__ = ["Bloom"]


class Bloom:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> None:
        shape = spec.shape
        name = weights.either("transformer.word_embeddings.weight", "word_embeddings.weight")
        prefix = name.removesuffix("word_embeddings.weight")
        norm = partial(LayerNorm, ops, weights, size=shape.hidden, epsilon=spec.norm_epsilon)
        self._ranks = ops.ranks
        self._embedding = Embedding(
            ops, weights, f"{prefix}word_embeddings", ops.ranks.rows(shape.vocabulary), shape.hidden
        )
        self._norm_in = norm(f"{prefix}word_embeddings_layernorm")
        slopes = slopes_of(shape.heads).to(device)
        layers = own_layers(ops, weights, f"{prefix}h", shape.layers)
        self._blocks = [_Block(spec, weights, ops, f"{prefix}h.{i}", i, slopes) for i in layers]
        self._norm = norm(f"{prefix}ln_f")
        tied = self._embedding if shape.tied else None
        self._head = Head(ops, weights, "lm_head", shape.vocabulary, shape.hidden, tied=tied)

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        x = self._ranks.enter(lambda: self._norm_in(self._embedding(batch.tokens)), len(batch.tokens))  # [T, H]
        for index, block in enumerate(self._blocks):
            x = block(x, batch, cache.layer(index))
        return self._ranks.leave(lambda: self._norm(x), x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


class _Block:
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int, slopes: Tensor) -> None:
        shape = spec.shape
        hidden, dim, inner = shape.hidden, shape.head_dim, ops.ranks.share(shape.intermediate)
        heads = ops.ranks.share(shape.heads)
        columns = ops.ranks.share(shape.heads, dim)

        def linear(which: str, out: int | Part, into: int | Part) -> Linear:
            return Linear(ops, weights, f"{name}.{which}", out=(out,), into=into, bias=True)

        self._norm_in = LayerNorm(ops, weights, f"{name}.input_layernorm", hidden, spec.norm_epsilon)
        qkv = linear("self_attention.query_key_value", _regrouped(heads, dim), hidden)
        out = linear("self_attention.dense", hidden, columns)
        self._attention = Attention(ops, attention_form(spec, layer, slopes=slopes), qkv, out)
        self._norm_mid = LayerNorm(ops, weights, f"{name}.post_attention_layernorm", hidden, spec.norm_epsilon)
        up, down = linear("mlp.dense_h_to_4h", inner, hidden), linear("mlp.dense_4h_to_h", hidden, inner)
        self._feed_forward = Plain(ops, up, down, spec.activation)

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        x = x + self._attention(self._norm_in(x), batch, cache)
        return x + self._feed_forward(self._norm_mid(x))


def _regrouped(heads: Part, dim: int) -> Part:
    """Rows of [heads, q|k|v, dim] as q of these heads, then k, then v."""
    own = [head for start, stop in heads.ranges for head in range(start, stop)]
    starts = [(3 * head + which) * dim for which in range(3) for head in own]
    return Part(3 * heads.whole * dim, tuple((start, start + dim) for start in starts))


def slopes_of(heads: int) -> Tensor:
    """[heads]: 2^(-8 / n), 2^(-16 / n), ... for n heads, a power of two; the others lie between, as those of 2n do (Press
    and others, 2021)."""
    n = 1 << int(math.log2(heads))
    between = [2 ** (-4 * i / n) for i in range(1, 2 * (heads - n), 2)]
    return torch.tensor([2 ** (-8 * i / n) for i in range(1, n + 1)] + between)
