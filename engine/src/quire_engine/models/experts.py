"""Llamas with experts to choose from in the place of feed-forwards: Mixtral in every layer, Qwen3-MoE in some."""

import torch

from quire_engine.layers.feed_forward import Experts, FeedForward
from quire_engine.models.llama import Llama, gated
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.spec import ModelSpec

__all__ = ["sparse_llama"]


def sparse_llama(spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> Llama:
    return Llama(spec, weights, ops, device, feed_forward=_feed_forward)


def _feed_forward(spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int) -> FeedForward:
    shape = spec.shape
    if layer not in shape.sparse or spec.routing is None:
        return gated(spec, weights, ops, name)
    old, new = f"{name}.block_sparse_moe", f"{name}.mlp"  # Mixtral's, and all others'
    return Experts(
        ops,
        weights,
        weights.either(f"{new}.gate.weight", f"{old}.gate.weight").removesuffix(".gate.weight"),
        experts=shape.experts,
        routing=spec.routing,
        hidden=shape.hidden,
        inner=shape.expert_intermediate,
        activation=spec.activation,
    )
