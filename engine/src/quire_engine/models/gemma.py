"""Gemma 2 and 3: llama's flow with a norm after each branch too, windows in most layers, and a scaled embedding.

Gemma 2 caps its scores and logits; Gemma 3 norms its heads and turns them faster in windowed layers.
Shapes: T tokens of the step, H hidden.
"""

import torch
from torch import Tensor

from quire_engine.layers.attention import Cache
from quire_engine.layers.embedding import Embedding, Head
from quire_engine.layers.norms import RMSNorm
from quire_engine.layers.rotary import rotary_tables
from quire_engine.layers.stage import own_layers
from quire_engine.models.llama import gated, self_attention
from quire_engine.models.weights import Weights
from quire_engine.ops import LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["Gemma"]


class Gemma:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> None:
        shape = spec.shape
        self._ranks = ops.ranks
        rows = ops.ranks.rows(shape.vocabulary)
        self._embedding = Embedding(ops, weights, "model.embed_tokens", rows, shape.hidden)
        self._scale = shape.hidden**0.5
        rotary = rotary_tables(spec, device)
        self._blocks = [
            _Block(spec, weights, ops, f"model.layers.{i}", i, rotary[i])
            for i in own_layers(ops, weights, "model.layers", shape.layers)
        ]
        self._norm = RMSNorm(ops, weights, "model.norm", shape.hidden, spec.norm_epsilon, from_one=True)
        tied = self._embedding if shape.tied else None
        self._head = Head(
            ops, weights, "lm_head", shape.vocabulary, shape.hidden, tied=tied, softcap=spec.logit_softcap
        )

    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        x, residual = self._ranks.enter(lambda: self._embed(batch.tokens), len(batch.tokens)), None  # [T, H]
        for index, block in enumerate(self._blocks):
            x, residual = block(x, residual, batch, cache.layer(index))
        return self._ranks.leave(lambda: self._norm.add(x, residual)[0], x, residual)

    def _embed(self, tokens: Tensor) -> Tensor:
        x = self._embedding(tokens)
        return x * torch.tensor(self._scale, dtype=x.dtype).item()  # rounded to the format, as it was in training

    def logits(self, hidden: Tensor) -> Tensor:
        return self._head(hidden)


class _Block:
    """One layer: attention, then feed-forward, each between two norms; `x` and `residual` are as in llama.py."""

    def __init__(
        self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int, rotary: Tensor | None
    ) -> None:
        def norm(which: str) -> RMSNorm:
            return RMSNorm(ops, weights, f"{name}.{which}", spec.shape.hidden, spec.norm_epsilon, from_one=True)

        self._norm_in = norm("input_layernorm")
        self._attention = self_attention(spec, weights, ops, name, layer, rotary, from_one=True)
        self._norm_attended = norm("post_attention_layernorm")
        self._norm_mid = norm("pre_feedforward_layernorm")
        self._feed_forward = gated(spec, weights, ops, f"{name}.mlp")
        self._norm_out = norm("post_feedforward_layernorm")

    def __call__(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        x, residual = self._norm_in.add(x, residual)
        x, residual = self._norm_mid.add(self._norm_attended(self._attention(x, batch, cache)), residual)
        return self._norm_out(self._feed_forward(x)), residual
