"""Mixtral: a llama with experts to choose from in the place of each feed-forward."""

import torch

from quire_engine.layers.feed_forward import Experts
from quire_engine.models.llama import Llama
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.spec import ModelSpec

__all__ = ["mixtral"]


def mixtral(spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> Llama:
    return Llama(spec, weights, ops, device, feed_forward=_experts)


def _experts(spec: ModelSpec, weights: Weights, ops: Ops, name: str) -> Experts:
    shape = spec.shape
    old, new = f"{name}.block_sparse_moe", f"{name}.mlp"  # mlp where experts are saved fused
    return Experts(
        ops,
        weights,
        weights.either(f"{old}.gate.weight", f"{new}.gate.weight").removesuffix(".gate.weight"),
        experts=shape.experts,
        chosen=shape.experts_per_token,
        hidden=shape.hidden,
        inner=shape.intermediate,
        activation=spec.activation,
    )
