"""How much memory an engine needs, and whether that is there. Arithmetic on sizes, before anything is started.

Only what is certain to fail is counted: the weights in the format that is asked for, and the KV cache that is asked for, in
GiB or as the length of one request. The engine itself knows the rest, and says so (exit code 11). A cluster asks with the
numbers of the resolve Job, one machine with those of config.json.
"""

from dataclasses import dataclass

from quire_api.engine import EngineOptions
from quire_api.footprint import CACHE_BYTES, DTYPE_BYTES, Footprint

__all__ = ["GIB", "Need", "Room", "misfit", "need_of", "quantity_bytes"]

GIB = 1 << 30
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory that an engine may have."""

    bytes: int
    of: str  # whose it is, for the sentence
    on_device: bool  # a GPU's: swap space is the host's


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Of one engine, in bytes."""

    weights: int
    cache: int
    swap: int  # in the host's memory


def need_of(engine: EngineOptions, footprint: Footprint | None, devices: int = 1, *, on_device: bool = False) -> Need:
    """Without a footprint, what the options alone say. What is asked for in GiB, each of its devices has; the rest they
    share. On a GPU quantized weights may stay as they are."""
    swap, weights, width = int(engine.swap_space_gib * GIB) * devices, 0, 0
    if footprint is not None:
        dtype = footprint.dtype if engine.dtype == "auto" else engine.dtype
        width = DTYPE_BYTES.get(dtype, DTYPE_BYTES["float32"])
        weights = footprint.parameters * width
        if on_device and footprint.quantized_bytes is not None:
            weights = min(weights, footprint.quantized_bytes)
    cached = CACHE_BYTES.get(engine.kv_cache_dtype, width)
    if engine.kv_cache_gib is not None:
        cache = int(engine.kv_cache_gib * GIB) * devices
    else:
        cache = (engine.max_model_len or 0) * (footprint.kv_values_per_token if footprint else 0) * cached
    return Need(weights=weights, cache=cache, swap=swap)


def misfit(need: Need, room: Room) -> str | None:
    """The sentence with the numbers and the fix; None if it may fit."""
    wanted = need.weights + need.cache + (0 if room.on_device else need.swap)
    if wanted <= room.bytes:
        return None
    parts = [f"{need.weights / GIB:.2f} GiB for the weights", f"{need.cache / GIB:.2f} GiB for the KV cache"]
    if need.swap and not room.on_device:
        parts.append(f"{need.swap / GIB:.2f} GiB for swapped requests")
    return (
        f"an engine needs {' and '.join(parts)}, and {room.of} has {room.bytes / GIB:.2f} GiB: lower maxModelLen or kvCacheGiB, "
        "take a smaller model, or give it more memory"
    )


def quantity_bytes(quantity: object) -> int | None:
    """Kubernetes' `24Gi` in bytes; None for what is no amount of memory, which is the API server's to refuse."""
    text = str(quantity)
    number = text.rstrip("KMGTik")
    try:
        return int(float(number) * UNITS[text[len(number) :]])
    except (ValueError, KeyError, OverflowError):
        return None
