"""The table of kernels: everything a model computes that is more than a view.

`Ops` is built once (build.py), handed to the model and from it to the layers; nothing looks it up. A new
kernel is a field here, an implementation in reference.py, which is the oracle, and a parity case in
tests/quire_engine/test_ops.py for each other implementation.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quire_engine.runtime.batch import ForwardBatch

__all__ = ["Ops"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    """x [T, in], weight [out, in], bias [out] -> [T, out]"""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """x [T, hidden], weight [hidden], epsilon -> [T, hidden]; computed in float32"""

    rotate: Callable[[Tensor, Tensor, Tensor], Tensor]
    """x [T, heads, head_dim], table [positions, head_dim] of cos|sin, positions [T] -> x rotated"""

    silu_mul: Callable[[Tensor], Tensor]
    """gate|up [T, 2 * intermediate] -> silu(gate) * up [T, intermediate]"""

    write_kv: Callable[[Tensor, Tensor, tuple[Tensor, Tensor], Tensor], None]
    """key, value [T, kv_heads, head_dim], a layer's cache, places [T]: store them"""

    attention: Callable[[Tensor, tuple[Tensor, Tensor], ForwardBatch, float], Tensor]
    """query [T, heads, head_dim], a layer's cache, batch, scale -> [T, heads, head_dim]; causal"""
