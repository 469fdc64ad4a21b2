"""Llamas with experts to choose from in the place of feed-forwards: Mixtral in every layer, Qwen3-MoE in some, gpt-oss in every
layer with biases, a gate of its own and sinks of attention, which llama.py knows. DeepSeek has one feed-forward more beside them,
for every token (deepseek.py).

Checkpoints name an expert's matrices w1, w3, w2 or gate_proj, up_proj, down_proj, or keep those of all experts in one tensor:

    gate_up_proj [experts, 2 * inner, hidden]   gate, then up         down_proj [experts, hidden, inner]
    of gpt-oss   [experts, hidden, 2 * inner]   gate, up, gate, ...             [experts, inner, hidden]
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from quire_engine.layers.feed_forward import Experts, FeedForward, Together
from quire_engine.models.llama import Llama, gated
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.runtime.ranks import Part
from quire_engine.spec import ModelSpec

__all__ = ["feed_forward", "gpt_oss", "sparse_llama"]


def sparse_llama(spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> Llama:
    return Llama(spec, weights, ops, device, feed_forward=feed_forward)


def gpt_oss(spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> Llama:
    return Llama(spec, weights, ops, device, feed_forward=_feed_forward_of_gpt_oss)


def feed_forward(spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int) -> FeedForward:
    shape = spec.shape
    if layer not in shape.sparse or spec.routing is None:
        return gated(spec, weights, ops, f"{name}.mlp")
    old, new = f"{name}.block_sparse_moe", f"{name}.mlp"  # Mixtral's, and all others'
    name = weights.either(f"{new}.gate.weight", f"{old}.gate.weight").removesuffix(".gate.weight")
    experts, hidden, inner = shape.experts, shape.hidden, shape.expert_intermediate
    own = ops.ranks.share(inner)
    fused = f"{name}.experts.gate_up_proj"
    if fused in weights:
        both = Part.joined([own, own])
        gate_up = weights.parts(fused, (experts, 2 * inner, hidden), part=both, dim=1)
        down = weights.parts(f"{name}.experts.down_proj", (experts, hidden, inner), part=own, dim=2)
    else:
        each = [f"{name}.experts.{e}" for e in range(experts)]

        def called(expert: str, old: str, new: str) -> str:
            return weights.either(f"{expert}.{old}.weight", f"{expert}.{new}.weight")

        gate_up = (
            weights.stacked(
                [called(expert, "w1", "gate_proj"), called(expert, "w3", "up_proj")],
                [(inner, hidden)] * 2,
                parts=[own] * 2,
            )
            for expert in each
        )
        down = (weights.take(called(expert, "w2", "down_proj"), (hidden, inner), part=own, dim=1) for expert in each)
    preference, shared = f"{name}.gate.e_score_correction_bias", shape.shared_intermediate
    chosen = Experts(
        ops,
        router=(weights.take(f"{name}.gate.weight", (experts, hidden)), None),
        gate_up=gate_up,
        down=down,
        count=experts,
        routing=spec.routing,
        activation=spec.activation,
        preference=weights.take(preference, (experts,), torch.float32) if spec.routing.sigmoid else None,
    )
    return Together(chosen, gated(spec, weights, ops, f"{name}.shared_experts", shared)) if shared else chosen


def _feed_forward_of_gpt_oss(spec: ModelSpec, weights: Weights, ops: Ops, name: str, layer: int) -> FeedForward:
    shape, name = spec.shape, f"{name}.mlp"
    assert spec.routing is not None  # every layer has experts
    experts, hidden, inner = shape.experts, shape.hidden, shape.expert_intermediate
    own = ops.ranks.share(inner)
    both = Part(2 * inner, tuple((2 * start, 2 * stop) for start, stop in own.ranges))
    gate_up_proj, down_proj = f"{name}.experts.gate_up_proj", f"{name}.experts.down_proj"
    gate_up_bias = weights.take(f"{gate_up_proj}_bias", (experts, 2 * inner), torch.float32, part=both, dim=1)
    down_bias = weights.take(f"{down_proj}_bias", (experts, hidden), torch.float32)
    if own.start > 0:
        down_bias = torch.zeros_like(down_bias)  # in the sum of ranks it counts once
    router = weights.take(f"{name}.router.weight", (experts, hidden))
    return Experts(
        ops,
        router=(router, weights.take(f"{name}.router.bias", (experts,), torch.float32)),
        gate_up=_turned(weights.parts(gate_up_proj, (experts, hidden, 2 * inner), part=both, dim=2), apart=True),
        down=_turned(weights.parts(down_proj, (experts, inner, hidden), part=own, dim=1)),
        count=experts,
        routing=spec.routing,
        activation=spec.activation,
        biases=(_apart(gate_up_bias.T).T.contiguous(), down_bias),
    )


def _turned(matrices: Iterator[Tensor], *, apart: bool = False) -> Iterator[Tensor]:
    """[in, out] -> [out, in]"""
    for matrix in matrices:
        yield _apart(matrix.T) if apart else matrix.T.contiguous()


def _apart(rows: Tensor) -> Tensor:
    """Rows of gate and up in turns -> those of gate, then those of up."""
    return torch.cat((rows[0::2], rows[1::2]))
