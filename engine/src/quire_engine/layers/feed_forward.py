"""Feed-forwards: plain, gated, a choice of experts, or two together."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from quire_engine.layers.linear import Linear
from quire_engine.ops import Activation, Ops
from quire_engine.spec import Routing

__all__ = ["Experts", "FeedForward", "Gated", "Plain", "Together"]


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
    """Each token goes to the few experts that the router likes best; their outputs are added by its weights. Every rank has
    its part of each expert."""

    def __init__(
        self,
        ops: Ops,
        *,
        router: tuple[Tensor, Tensor | None],
        gate_up: Iterator[Tensor],
        down: Iterator[Tensor],
        count: int,
        routing: Routing,
        activation: str,
        biases: tuple[Tensor, Tensor] | None = None,
        preference: Tensor | None = None,
    ) -> None:
        """The router's matrix [experts, hidden] and bias, and its preference, as `ops.route` takes it; of each expert, one after the other, gate|up [2 * inner, hidden] and
        down [hidden, inner]; their biases, as `ops.mix` takes them."""
        self._ops = ops
        self._routing = routing
        self._activation = Activation(activation)
        self._router, self._router_bias = ops.pack(router[0]), router[1]
        self._gate_up = ops.pack_experts(gate_up, count)
        self._down = ops.pack_experts(down, count)
        self._biases = biases
        self._preference = preference

    def __call__(self, x: Tensor) -> Tensor:
        ops = self._ops
        likings = ops.linear(x, self._router, self._router_bias, wide=True)
        routed = ops.route(likings, self._routing, self._preference)
        return ops.ranks.sum(ops.mix(x, routed, self._gate_up, self._down, self._activation, self._biases))


class Together:
    """What both make of a token, added: experts to choose from, and one for all."""

    def __init__(self, first: FeedForward, second: FeedForward) -> None:
        self._first, self._second = first, second

    def __call__(self, x: Tensor) -> Tensor:
        return self._first(x) + self._second(x)
