"""Feed-forwards: plain, gated, or a choice of experts."""

from typing import Protocol

from torch import Tensor

from quire_engine.layers.linear import Linear
from quire_engine.models.weights import Weights
from quire_engine.ops import Activation, Ops
from quire_engine.runtime.ranks import Part
from quire_engine.spec import Routing

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
        routing: Routing,
        hidden: int,
        inner: int,
        activation: str,
    ) -> None:
        self._ops = ops
        self._routing = routing
        self._activation = Activation(activation)
        self._router = ops.pack(weights.take(f"{name}.gate.weight", (experts, hidden)))
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
            down = (
                weights.take(called(expert, "w2", "down_proj"), (hidden, inner), part=own, dim=1) for expert in each
            )
        self._gate_up = ops.pack_experts(gate_up, experts)
        self._down = ops.pack_experts(down, experts)

    def __call__(self, x: Tensor) -> Tensor:
        ops = self._ops
        routed = ops.route(ops.linear(x, self._router, wide=True), self._routing)
        return ops.ranks.sum(ops.mix(x, routed, self._gate_up, self._down, self._activation))
