"""How much KV cache to allocate. Pure arithmetic, done once before anything is allocated."""

from dataclasses import dataclass

from quire_api.footprint import ModelShape
from quire_engine.errors import ConfigFailure, MemoryFailure

__all__ = ["Sizes", "plan_sizes"]

GIB = 1 << 30
SHARE_OF_FREE = 0.4  # the rest is for activations, the API process and the neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    num_blocks: int
    block_size: int
    max_model_len: int
    kv_cache_bytes: int


def plan_sizes(
    shape: ModelShape,
    dtype: str,
    *,
    trained_len: int,
    max_model_len: int | None,
    block_size: int,
    max_num_seqs: int,
    kv_cache_gib: float | None,
    free_bytes: int,
) -> Sizes:
    """Blocks and longest request. `free_bytes` is what is free once the weights are loaded."""
    if max_model_len is not None and max_model_len > trained_len:
        raise ConfigFailure(
            f"--max-model-len {max_model_len} is more than the {trained_len} tokens the model was trained for: lower it"
        )
    block_bytes = shape.kv_bytes_per_token(dtype) * block_size
    wanted_len = max_model_len or trained_len
    if kv_cache_gib is None:
        full_house = max_num_seqs * -(-wanted_len // block_size) * block_bytes
        budget = min(full_house, int(free_bytes * SHARE_OF_FREE))
    else:
        budget = int(kv_cache_gib * GIB)
        if budget > free_bytes:
            raise MemoryFailure(
                f"--kv-cache-gib {kv_cache_gib} is more than the {free_bytes / GIB:.2f} GiB that are free: lower it"
            )
    num_blocks = budget // block_bytes
    held = num_blocks * block_size
    if num_blocks < 1 or (max_model_len is not None and held < max_model_len):
        need = wanted_len * shape.kv_bytes_per_token(dtype) / GIB
        raise MemoryFailure(
            f"a KV cache of {budget / GIB:.3f} GiB holds {held} tokens, but one request may have {wanted_len} ({need:.3f} GiB): "
            "lower --max-model-len or raise --kv-cache-gib"
        )
    return Sizes(
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=min(wanted_len, held),
        kv_cache_bytes=num_blocks * block_bytes,
    )
