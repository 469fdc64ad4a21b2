"""Which layers a rank has."""

from quire_engine.models.weights import Weights
from quire_engine.ops import Ops

__all__ = ["own_layers"]


def own_layers(ops: Ops, weights: Weights, name: str, count: int) -> range:
    """The numbers of this stage's layers, which are called `name`.0 and so on; those of others stay in the file."""
    own = ops.ranks.layers(count)
    for layer in set(range(count)) - set(own):
        weights.ignore(f"{name}.{layer}.")
    return own
