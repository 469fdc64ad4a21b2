"""DeepSeek V2 and V3: a llama that attends over latent numbers (layers/latent.py), and has experts in all layers but the first
few. Router, experts and the feed-forward beside them are those of experts.py."""

import torch

from quire_engine.layers.latent import LatentAttention
from quire_engine.models.experts import feed_forward
from quire_engine.models.llama import Llama
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.spec import ModelSpec

__all__ = ["deepseek"]


def deepseek(spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> Llama:
    weights.ignore(f"model.layers.{spec.shape.layers}.")  # one more layer, which V3 guesses further tokens with
    return Llama(spec, weights, ops, device, feed_forward, LatentAttention)
