"""How long a step takes at the least: what it reads, divided by how fast the device reads, or what it multiplies. Pure.

    seconds = max(weights / R, 2 (P_layers T + P_head S) / F)  +  for each chunk max(context * kv / R, attention / F)

T tokens go through the layers, S rows through the head; R bytes are read and F operations done in a second. Activations
count nothing: they could stay on the chip. docs/performance.md says how to read a ratio to this.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from quire_api.footprint import DTYPE_BYTES, ModelShape
from quire_engine.core.step import StepPlan

__all__ = ["Chunk", "Limits", "limits_of", "seconds_of", "step_seconds"]

Chunk = tuple[int, int, bool]  # start, length, whether it samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    read_bytes_per_s: float
    flop_per_s: float  # of products in 16 bits
    name: str  # of the device


# Data sheets: bytes a second of memory, dense operations a second in 16 bits. The longest name that fits counts.
DEVICES = {
    "NVIDIA A100": (2.039e12, 312e12),
    "NVIDIA A10": (0.600e12, 125e12),
    "NVIDIA L4": (0.300e12, 121e12),
    "NVIDIA L40S": (0.864e12, 362e12),
    "NVIDIA H100": (3.35e12, 989e12),
    "NVIDIA H100 PCIe": (2.0e12, 756e12),
    "NVIDIA H200": (4.8e12, 989e12),
    "NVIDIA B200": (8.0e12, 2250e12),
}


def limits_of(device: str) -> Limits | None:
    """Of a device by the name that torch has for it; None: nobody has entered it."""
    fitting = [name for name in DEVICES if f"{device} ".startswith((f"{name} ", f"{name}-"))]
    if not fitting:
        return None
    read, flop = DEVICES[max(fitting, key=len)]
    return Limits(read_bytes_per_s=read, flop_per_s=flop, name=device)


def step_seconds(
    shape: ModelShape,
    dtype: str,
    chunks: Iterable[Chunk],
    limits: Limits,
    saved_bytes: int = 0,
    cache_dtype: str | None = None,
) -> float:
    """The cache may have a format of its own. So many bytes of the plain matrices, of which every step reads all, are saved by
    what stays in few bits; no experts do."""
    chunks = list(chunks)
    if not chunks:
        return 0.0
    tokens, rows = sum(length for _, length, _ in chunks), sum(samples for _, _, samples in chunks)
    head = 0 if shape.headless else shape.vocabulary * shape.hidden
    embedding = 0 if shape.tied else shape.vocabulary * shape.hidden  # of which a row for each token is read
    experts = shape.experts * len(shape.sparse) * shape.hidden * 3 * shape.expert_intermediate
    chosen = shape.experts_per_token / shape.experts if shape.experts else 0.0  # of the experts, by one token
    common = shape.parameters - head - embedding - experts
    read = common + experts * (1 - (1 - chosen) ** tokens) + (head if rows else 0)
    multiplied = (common + experts * chosen) * tokens + head * rows
    read_bytes = read * DTYPE_BYTES[dtype] - saved_bytes
    seconds = max(read_bytes / limits.read_bytes_per_s, 2.0 * multiplied / limits.flop_per_s)
    for start, length, _ in chunks:
        looked_at = length * start + length * (length + 1) / 2
        products = 2.0 * shape.layers * shape.heads * shape.per_pair * looked_at
        keys = (start + length) * shape.kv_bytes_per_token(cache_dtype or dtype)
        seconds += max(keys / limits.read_bytes_per_s, products / limits.flop_per_s)
    return seconds


def seconds_of(
    plan: StepPlan, shape: ModelShape, dtype: str, limits: Limits, saved_bytes: int, cache_dtype: str
) -> float:
    chunks = zip(plan.starts, plan.lengths, plan.samples, strict=True)
    return step_seconds(shape, dtype, chunks, limits, saved_bytes, cache_dtype)
