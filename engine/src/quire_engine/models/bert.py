"""BERT, for embeddings: every token sees the whole text, and norms come after each addition.

Its pooler and its heads for other tasks are left in the file. Shapes: T tokens, H hidden.
"""

import torch
from torch import Tensor

from quire_engine.layers.attention import Attention, Cache, attention_form
from quire_engine.layers.embedding import Embedding
from quire_engine.layers.feed_forward import Plain
from quire_engine.layers.linear import Linear
from quire_engine.layers.norms import LayerNorm
from quire_engine.models.weights import Weights
from quire_engine.ops import LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["Bert"]


class Bert:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> None:
        shape = spec.shape
        first = "embeddings.word_embeddings.weight"
        prefix = weights.either(f"bert.{first}", first).removesuffix(first)
        for unused in (f"{prefix}pooler.", "cls."):
            weights.ignore(unused)

        def embedding(which: str, rows: int) -> Embedding:
            return Embedding(ops, weights, f"{prefix}embeddings.{which}_embeddings", rows, shape.hidden)

        self._words = embedding("word", shape.vocabulary)
        self._positions = embedding("position", shape.positions)
        self._types = embedding("token_type", shape.token_types)
        self._norm = LayerNorm(ops, weights, f"{prefix}embeddings.LayerNorm", shape.hidden, spec.norm_epsilon)
        self._blocks = [_Block(spec, weights, ops, f"{prefix}encoder.layer.{i}", i) for i in range(shape.layers)]

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        x = self._words(batch.tokens) + self._types(torch.zeros_like(batch.tokens))  # [T, H]; all of the first type
        x = self._norm(x + self._positions(batch.positions))
        for index, block in enumerate(self._blocks):
            x = block(x, batch, cache.layer(index))
        return x


class _Block:
    """One layer: attention, then feed-forward, each added to what came in and normed."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int) -> None:
        hidden, inner = spec.shape.hidden, spec.shape.intermediate

        def linear(*names: str, out: int, into: int) -> Linear:
            parts = [f"{name}.{which}" for which in names]
            return Linear(ops, weights, *parts, out=(out,) * len(parts), into=into, bias=True)

        def norm(which: str) -> LayerNorm:
            return LayerNorm(ops, weights, f"{name}.{which}.LayerNorm", hidden, spec.norm_epsilon)

        self_names = [f"attention.self.{part}" for part in ("query", "key", "value")]
        qkv = linear(*self_names, out=hidden, into=hidden)
        out = linear("attention.output.dense", out=hidden, into=hidden)
        self._attention = Attention(ops, attention_form(spec, layer, causal=False), qkv, out)
        self._norm_attended = norm("attention.output")
        up = linear("intermediate.dense", out=inner, into=hidden)
        down = linear("output.dense", out=hidden, into=inner)
        self._feed_forward = Plain(ops, up, down, spec.activation)
        self._norm_out = norm("output")

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        x = self._norm_attended(x + self._attention(x, batch, cache))
        return self._norm_out(x + self._feed_forward(x))
