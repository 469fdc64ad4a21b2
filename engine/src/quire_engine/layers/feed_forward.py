"""Feed-forwards: plain, gated, or a choice of experts."""

from typing import Protocol

import torch
from torch import Tensor

from quire_engine.layers.linear import Linear
from quire_engine.models.weights import Weights
from quire_engine.ops import Activation, Matrix, Ops
from quire_engine.runtime.ranks import Part

__all__ = ["Experts", "FeedForward", "Gated", "Plain"]


class FeedForward(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """[T, hidden] -> [T, hidden]"""
        ...


class Plain:
    def __init__(self, ops: Ops, up: Linear, down: Linear, activation: str) -> None:
        self._activate = ops.activate
        self._up = up
        self._down = down
        self._activation = Activation(activation)

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._activate(self._up(x), self._activation))


class Gated:
    def __init__(self, ops: Ops, gate_up: Linear, down: Linear, activation: str) -> None:
        self._gate = ops.gate
        self._gate_up = gate_up
        self._down = down
        self._activation = Activation(activation)

    def __call__(self, x: Tensor) -> Tensor:
        return self._down(self._gate(self._gate_up(x), self._activation))


class Experts:
    """Each token goes to the few experts that the router likes best; their outputs are added by its weights.

    Checkpoints name an expert's matrices w1, w3, w2 or gate_proj, up_proj, down_proj, or keep those of all experts in
    one tensor: gate_up_proj [experts, 2 * inner, hidden] and down_proj [experts, hidden, inner]. Every rank has its part of
    each expert.
    """

    def __init__(
        self,
        ops: Ops,
        weights: Weights,
        name: str,
        *,
        experts: int,
        chosen: int,
        hidden: int,
        inner: int,
        activation: str,
    ) -> None:
        self._ops = ops
        self._chosen = chosen
        self._activation = Activation(activation)
        self._router = ops.pack(weights.take(f"{name}.gate.weight", (experts, hidden)))
        own = ops.ranks.share(inner)
        self._gate_up: list[Matrix]  # of each expert [2 * inner, hidden]
        self._down: list[Matrix]  # [hidden, inner]
        fused = f"{name}.experts.gate_up_proj"
        if fused in weights:
            both = Part.joined([own, own])
            parts = weights.parts(fused, (experts, 2 * inner, hidden), part=both, dim=1)
            self._gate_up = [ops.pack(part) for part in parts]
            parts = weights.parts(f"{name}.experts.down_proj", (experts, hidden, inner), part=own, dim=2)
            self._down = [ops.pack(part) for part in parts]
            return
        self._gate_up, self._down = [], []
        for expert in (f"{name}.experts.{e}" for e in range(experts)):
            gate, up, down = (
                weights.either(f"{expert}.{old}.weight", f"{expert}.{new}.weight")
                for old, new in (("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj"))
            )
            self._gate_up.append(ops.pack(weights.stacked([gate, up], [(inner, hidden)] * 2, parts=[own] * 2)))
            self._down.append(ops.pack(weights.take(down, (hidden, inner), part=own, dim=1)))

    def __call__(self, x: Tensor) -> Tensor:
        linear = self._ops.linear
        likings = linear(x, self._router, wide=True).softmax(dim=-1)  # [T, experts] float32
        shares, choices = likings.topk(self._chosen, dim=-1)  # [T, chosen]
        shares = shares / shares.sum(dim=-1, keepdim=True)
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for expert, (gate_up, down) in enumerate(zip(self._gate_up, self._down, strict=True)):
            rows, rank = (choices == expert).nonzero(as_tuple=True)
            if len(rows):
                y = linear(self._ops.gate(linear(x[rows], gate_up), self._activation), down)
                out.index_add_(0, rows, y.float() * shares[rows, rank, None])
        return self._ops.ranks.sum(out.to(x.dtype))
