"""GPT-2: learned positions, LayerNorm, biases everywhere, matrices saved as [in, out]. Shapes: T tokens, H hidden."""

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

__all__ = ["GPT2"]


class GPT2:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> None:
        shape = spec.shape
        prefix = weights.either("transformer.wte.weight", "wte.weight").removesuffix("wte.weight")
        self._ranks = ops.ranks
        self._embedding = Embedding(ops, weights, f"{prefix}wte", ops.ranks.rows(shape.vocabulary), shape.hidden)
        self._positions = Embedding(ops, weights, f"{prefix}wpe", shape.positions, shape.hidden)
        layers = own_layers(ops, weights, f"{prefix}h", shape.layers)
        self._blocks = [_Block(spec, weights, ops, f"{prefix}h.{i}", i) for i in layers]
        self._norm = LayerNorm(ops, weights, f"{prefix}ln_f", shape.hidden, spec.norm_epsilon)
        tied = self._embedding if shape.tied else None
        self._head = Head(ops, weights, "lm_head", shape.vocabulary, shape.hidden, tied=tied)

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        x = self._ranks.enter(
            lambda: self._embedding(batch.tokens) + self._positions(batch.positions), len(batch.tokens)
        )  # [T, H]
        for index, block in enumerate(self._blocks):
            x = block(x, batch, cache.layer(index))
        return self._ranks.leave(lambda: self._norm(x), x)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


class _Block:
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int) -> None:
        hidden, inner = spec.shape.hidden, ops.ranks.share(spec.shape.intermediate)
        heads = ops.ranks.share(spec.shape.heads, spec.shape.head_dim)  # which make up the hidden size

        def linear(which: str, out: int | Part, into: int | Part) -> Linear:
            return Linear(ops, weights, f"{name}.{which}", out=(out,), into=into, bias=True, transposed=True)

        weights.ignore(f"{name}.attn.bias")  # the causal mask, in older checkpoints
        weights.ignore(f"{name}.attn.masked_bias")
        self._norm_in = LayerNorm(ops, weights, f"{name}.ln_1", hidden, spec.norm_epsilon)
        qkv, out = linear("attn.c_attn", Part.joined([heads] * 3), hidden), linear("attn.c_proj", hidden, heads)
        self._attention = Attention(ops, attention_form(spec, layer), qkv, out)
        self._norm_mid = LayerNorm(ops, weights, f"{name}.ln_2", hidden, spec.norm_epsilon)
        up, down = linear("mlp.c_fc", inner, hidden), linear("mlp.c_proj", hidden, inner)
        self._feed_forward = Plain(ops, up, down, spec.activation)

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        x = x + self._attention(self._norm_in(x), batch, cache)
        return x + self._feed_forward(self._norm_mid(x))
