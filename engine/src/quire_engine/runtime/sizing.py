"""How much memory for what. Pure arithmetic, done once before anything is allocated.

    free once the weights are loaded = activations of the largest step + KV cache + the rest, for neighbours

What a step needs beside weights and cache is bounded by its budget of tokens and by how many requests sample in it;
it is counted here, so that an engine which is ready has all it will ever ask for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from quire_api.footprint import DTYPE_BYTES, ModelShape
from quire_engine.errors import ConfigFailure, MemoryFailure
from quire_engine.runtime.buckets import SHORTEST, buckets

__all__ = [
    "SCORED_AT_ONCE", "Sizes", "Workspace", "graph_bytes", "plan_sizes", "share_of", "split_bytes", "step_bytes", "swap_cost",
]  # fmt: skip

GIB = 1 << 30
SCORED_AT_ONCE = 256  # rows of logits at a time when log probabilities of prompts are asked for (runner.py)
SHARE_OF_FREE = 0.4  # the rest is for the API process, the page cache and the neighbours

# Orders of magnitude, for a choice between two: bytes a second between device and host, operations a second.
COPY_RATE = {"cpu": 10e9, "cuda": 25e9}
COMPUTE_RATE = {"cpu": 300e9, "cuda": 300e12}

# Of a CUDA graph. What drivers take is not documented: others see 5 to 15 MiB for a graph of a model with 32 layers.
KERNELS_OF_LAYER, MORE_OF_LATENT = 16, 20
NODE_BYTES = 16 << 10

Workspace = Callable[[ModelShape, str, int, int, int], int]  # shape, dtype, sequences, longest request, block size


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    num_blocks: int
    num_host_blocks: int
    block_size: int
    max_model_len: int
    cache_dtype: str
    kv_cache_bytes: int
    step_bytes: int  # activations, logits, workspace


def plan_sizes(
    shape: ModelShape,
    dtype: str,
    *,
    cache_dtype: str,
    trained_len: int,
    max_model_len: int | None,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    kv_cache_gib: float | None,
    swap_space_gib: float,
    free_bytes: int,
    workspace: Workspace | None = None,
) -> Sizes:
    """Blocks and longest request. `free_bytes` is what is free once the weights are loaded; `workspace` what kernels and
    recordings of this device need besides."""
    if max_model_len is not None and max_model_len > trained_len:
        raise ConfigFailure(
            f"--max-model-len {max_model_len} is more than the {trained_len} tokens the model was trained for: lower it"
        )
    block_bytes = shape.kv_bytes_per_token(cache_dtype) * block_size
    wanted_len = max_model_len or trained_len
    step = step_bytes(shape, dtype, max_num_batched_tokens, max_num_seqs) + block_bytes  # nobody's (kv_cache.py)
    if workspace is not None:
        step += workspace(shape, dtype, max_num_seqs, wanted_len, block_size)
    swap = int(swap_space_gib * GIB)
    if kv_cache_gib is None:
        full_house = max_num_seqs * -(-wanted_len // block_size) * block_bytes
        budget = max(0, min(full_house, int(free_bytes * SHARE_OF_FREE) - step - swap))
    else:
        budget = int(kv_cache_gib * GIB)
        if budget + step + swap > free_bytes:
            raise MemoryFailure(
                f"--kv-cache-gib {kv_cache_gib}, {step / GIB:.2f} GiB for a step of {max_num_batched_tokens} tokens and "
                f"{swap_space_gib:g} GiB of swap space are more than the {free_bytes / GIB:.2f} GiB that are free: "
                "lower one of --kv-cache-gib, --max-num-batched-tokens, --swap-space-gib"
            )
    num_blocks = budget // block_bytes
    held = num_blocks * block_size
    if num_blocks < 1 or (max_model_len is not None and held < max_model_len):
        need = wanted_len * shape.kv_bytes_per_token(cache_dtype) / GIB
        raise MemoryFailure(
            f"a KV cache of {budget / GIB:.3f} GiB holds {held} tokens, but one request may have {wanted_len} ({need:.3f} GiB): "
            "lower --max-model-len or raise --kv-cache-gib"
        )
    return Sizes(
        num_blocks=num_blocks,
        num_host_blocks=swap // block_bytes,
        block_size=block_size,
        max_model_len=min(wanted_len, held),
        cache_dtype=cache_dtype,
        kv_cache_bytes=num_blocks * block_bytes,
        step_bytes=step,
    )


def share_of(shape: ModelShape, tensor: int, stages: int) -> ModelShape:
    """The most that one rank has of a model which stages and the ranks of each divide (ranks.py). The vocabulary is left
    whole, for rank 0 has all logits."""
    layers = -(-shape.layers // stages)
    return replace(
        shape,
        layers=layers,
        sparse=shape.sparse[:layers],
        heads=shape.heads // tensor,
        kv_heads=max(1, shape.kv_heads // tensor),
        intermediate=shape.intermediate // tensor,
        expert_intermediate=shape.expert_intermediate // tensor,
        shared_intermediate=shape.shared_intermediate // tensor,
    )


def step_bytes(shape: ModelShape, dtype: str, max_num_batched_tokens: int, max_num_seqs: int) -> int:
    """One layer's activations, which are kept for the next step (ops: recorded), the logits, and what the sampler makes
    of them."""
    logits = min(max(max_num_seqs, SCORED_AT_ONCE), max_num_batched_tokens) * shape.vocabulary * 4 * 3
    return layer_bytes(shape, dtype, max_num_batched_tokens) + logits


def layer_bytes(shape: ModelShape, dtype: str, rows: int) -> int:
    key, value = shape.cached[0], shape.latent or shape.head_dim
    attention = (2 * shape.heads + shape.kv_heads) * key + (shape.heads + shape.kv_heads) * value
    if shape.latent:  # before queries become latent, and after values were
        attention += shape.heads * (2 * shape.head_dim + key + shape.value_dim)
    experts = shape.experts_per_token * (3 * shape.expert_intermediate + shape.hidden)
    inner = max(3 * shape.intermediate, experts + 3 * shape.shared_intermediate)
    return rows * (3 * shape.hidden + attention + inner) * DTYPE_BYTES[dtype]


def split_bytes(shape: ModelShape, dtype: str, max_num_seqs: int, max_len: int, block_size: int) -> int:
    """What attention on a GPU leaves of each part of a context, until they are added up (ops/triton/attend.py)."""
    parts = max_num_seqs * -(-max_len // SHORTEST)
    return parts * shape.heads * ((shape.latent or shape.head_dim) + 2) * 4


def graph_bytes(shape: ModelShape, dtype: str, max_num_seqs: int, max_len: int, block_size: int) -> int:
    """The same, and all recordings there can be: their kernels, their batches, and the memory they share."""
    every = list(buckets(max_num_seqs, max_len))
    kernels = len(every) * shape.layers * (KERNELS_OF_LAYER + bool(shape.latent) * MORE_OF_LATENT) * NODE_BYTES
    tables = sum(bucket.rows * -(-bucket.context // block_size) for bucket in every) * 4
    rows = max(bucket.rows for bucket in every)
    sums = max(bucket.parts for bucket in every) * shape.heads * ((shape.latent or shape.head_dim) + 2) * 4
    shared = layer_bytes(shape, dtype, rows) + sums
    return (
        split_bytes(shape, dtype, max_num_seqs, max_len, block_size) + kernels + tables + 2 * shared
    )  # none lies as it would alone


def swap_cost(shape: ModelShape, cache_dtype: str, device: str) -> float:
    """Seconds to move a token's keys and values out and in again, for each second it takes to compute them again."""
    move = 2 * shape.kv_bytes_per_token(cache_dtype) / COPY_RATE[device]
    return move / (2 * shape.parameters / COMPUTE_RATE[device])
