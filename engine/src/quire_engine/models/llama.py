"""The llama family: RMS norm, rotary embedding, grouped-query attention, a gated feed-forward.

Mistral adds a window, Phi-3 keeps its matrices fused, Qwen2 has biases, Qwen3 norms its heads; experts.py has several feed-forwards,
deepseek.py another attention as well.
Names of layers are those of the checkpoint. Shapes: T tokens of the step, H hidden.

What goes past a branch is added where the next norm is taken, so that a kernel can do both at once: a block is given
`x`, what the last branch made, and `residual`, what went past it.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quire_engine.layers.attention import Attention, Cache, attention_form
from quire_engine.layers.embedding import Embedding, Head
from quire_engine.layers.feed_forward import FeedForward, Gated
from quire_engine.layers.linear import Linear
from quire_engine.layers.norms import RMSNorm, rms_weight
from quire_engine.layers.rotary import rotary_tables
from quire_engine.layers.stage import own_layers
from quire_engine.models.weights import Weights
from quire_engine.ops import LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["Decoder", "Llama", "gated", "self_attention"]


class SelfAttention(Protocol):
    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """[T, H] -> [T, H]"""
        ...


# Of a layer: its name and number, and its table of angles.
MakeFeedForward = Callable[[ModelSpec, Weights, Ops, str, int], FeedForward]
MakeAttention = Callable[[ModelSpec, Weights, Ops, str, int, Tensor | None], SelfAttention]


def self_attention(
    spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int, rotary: Tensor | None, *, from_one: bool = False
) -> Attention:
    """`name`.self_attn; `from_one` is for the norms of its heads, if it has any (layers/norms.py)."""
    shape, name = spec.shape, f"{name}.self_attn"
    q, kv = (ops.ranks.share(heads, shape.head_dim) for heads in (shape.heads, shape.kv_heads))
    q_norm, k_norm = (
        rms_weight(weights, f"{name}.{part}_norm", shape.head_dim, from_one=from_one) if shape.qk_norm else None
        for part in "qk"
    )
    sinks = weights.take(f"{name}.sinks", (shape.heads,), torch.float32) if shape.sinks else None
    form = attention_form(spec, layer, rotary, q_norm=q_norm, k_norm=k_norm, sinks=sinks)
    projections, fused = [f"{name}.{part}_proj" for part in "qkv"], f"{name}.qkv_proj"
    bias = shape.qkv_bias
    qkv = Linear(ops, weights, *projections, out=(q, kv, kv), into=shape.hidden, bias=bias, fused=fused)
    out = Linear(ops, weights, f"{name}.o_proj", out=(shape.hidden,), into=q, bias=shape.out_bias)
    return Attention(ops, form, qkv, out)


def gated(spec: ModelSpec, weights: Weights, ops: Ops, name: str, width: int | None = None) -> Gated:
    """So wide inside; None: as the model says."""
    hidden, inner = spec.shape.hidden, ops.ranks.share(width or spec.shape.intermediate)
    bias = spec.shape.mlp_bias
    parts, fused = [f"{name}.gate_proj", f"{name}.up_proj"], f"{name}.gate_up_proj"
    gate_up = Linear(ops, weights, *parts, out=(inner, inner), into=hidden, bias=bias, fused=fused)
    down = Linear(ops, weights, f"{name}.down_proj", out=(hidden,), into=inner, bias=bias)
    return Gated(ops, gate_up, down, spec.activation)


def _alike(spec: ModelSpec, weights: Weights, ops: Ops, name: str, _: int) -> Gated:
    return gated(spec, weights, ops, f"{name}.mlp")


class Decoder:
    """All but the output head: what embeddings need."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        ops: Ops,
        device: torch.device,
        feed_forward: MakeFeedForward = _alike,
        attention: MakeAttention = self_attention,
    ) -> None:
        shape = spec.shape
        name = weights.either("model.embed_tokens.weight", "embed_tokens.weight").removesuffix(".weight")
        prefix = name.removesuffix("embed_tokens")
        self._ranks = ops.ranks
        self._embedding = Embedding(ops, weights, name, ops.ranks.rows(shape.vocabulary), shape.hidden)
        rotary = rotary_tables(spec, device)
        self._blocks = [
            _Block(spec, weights, ops, f"{prefix}layers.{i}", i, rotary[i], feed_forward, attention)
            for i in own_layers(ops, weights, f"{prefix}layers", shape.layers)
        ]
        self._norm = RMSNorm(ops, weights, f"{prefix}norm", shape.hidden, spec.norm_epsilon)

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        x, residual = self._ranks.enter(lambda: self._embedding(batch.tokens), len(batch.tokens)), None  # [T, H]
        for index, block in enumerate(self._blocks):
            x, residual = block(x, residual, batch, cache.layer(index))
        return self._ranks.leave(lambda: self._norm.add(x, residual)[0], x, residual)


class Llama(Decoder):
    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        ops: Ops,
        device: torch.device,
        feed_forward: MakeFeedForward = _alike,
        attention: MakeAttention = self_attention,
    ) -> None:
        super().__init__(spec, weights, ops, device, feed_forward, attention)
        tied = self._embedding if spec.shape.tied else None
        self._head = Head(ops, weights, "lm_head", spec.shape.vocabulary, spec.shape.hidden, tied=tied)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


class _Block:
    """One layer: attention, then feed-forward."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        ops: Ops,
        name: str,
        layer: int,
        rotary: Tensor | None,
        feed_forward: MakeFeedForward,
        attention: MakeAttention,
    ) -> None:
        hidden, epsilon = spec.shape.hidden, spec.norm_epsilon
        self._norm_in = RMSNorm(ops, weights, f"{name}.input_layernorm", hidden, epsilon)
        self._attention = attention(spec, weights, ops, name, layer, rotary)
        self._norm_mid = RMSNorm(ops, weights, f"{name}.post_attention_layernorm", hidden, epsilon)
        self._feed_forward = feed_forward(spec, weights, ops, name, layer)

    def __call__(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        x, residual = self._norm_in.add(x, residual)
        x, residual = self._norm_mid.add(self._attention(x, batch, cache), residual)
        return self._feed_forward(x), residual
