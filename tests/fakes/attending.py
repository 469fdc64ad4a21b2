"""Batches, caches and forms of attention, for the kernels that are tested with them."""

import torch
from torch import Tensor

from quire_engine.ops import AttentionForm, LayerCache, Ops
from quire_engine.runtime.batch import ForwardBatch

Chunk = tuple[list[int], int, int]  # blocks of the sequence, start, length


def batch_of(block_size: int, *chunks: Chunk) -> ForwardBatch:
    positions = [range(start, start + length) for _, start, length in chunks]
    width = max(len(blocks) for blocks, _, _ in chunks)
    nothing = torch.zeros(0, dtype=torch.int64)
    return ForwardBatch(
        tokens=nothing,
        positions=torch.tensor([p for run in positions for p in run]),
        places=torch.tensor(
            [
                c[0][p // block_size] * block_size + p % block_size
                for c, run in zip(chunks, positions, strict=True)
                for p in run
            ]
        ),
        query_start=torch.tensor([0, *(length for _, _, length in chunks)]).cumsum(0).int(),
        context_len=torch.tensor([start + length for _, start, length in chunks]).int(),
        longest_single=max((start + 1 for _, start, length in chunks if length == 1), default=0),
        block_tables=torch.tensor([blocks + [10**6] * (width - len(blocks)) for blocks, _, _ in chunks]).int(),
        follow_rows=nothing,
        follow_slots=nothing,
    )


def form_of(heads: int = 4, kv_heads: int = 2, head_dim: int = 64, **rest: object) -> AttentionForm:
    return AttentionForm(heads=heads, kv_heads=kv_heads, head_dim=head_dim, scale=head_dim**-0.5, **rest)  # type: ignore[arg-type]


def empty_cache(blocks: int, block_size: int, form: AttentionForm, dtype: torch.dtype, fill: float = 0.0) -> LayerCache:
    keys, values = (
        torch.full((blocks, form.kv_heads, block_size, dim), fill) for dim in (form.head_dim, form.value_dim)
    )
    return keys.to(dtype), values.to(dtype)


ATTENTION_FORMS = {
    "grouped": form_of(4, 2, 64),
    "single": form_of(2, 2, 32),
    "wide group": form_of(14, 2, 64),
    "48": form_of(3, 1, 48),
    "96": form_of(4, 2, 96),
    "128": form_of(4, 1, 128),
    "256": form_of(2, 1, 256),
    "odd": form_of(3, 3, 10),
    "window": form_of(4, 2, 64, window=13),
    "soft cap": form_of(4, 2, 64, softcap=2.0),
    "slopes": form_of(4, 2, 64, slopes=torch.tensor([0.5, 0.02, 0.0, 1.3])),
    "slopes and a soft cap": form_of(4, 4, 32, slopes=torch.tensor([0.5, 0.02, 0.0, 1.3]), softcap=3.0),
    "sinks": form_of(4, 2, 64, sinks=torch.tensor([-2.0, 0.0, 3.0, 40.0])),
    "sinks and a window": form_of(14, 2, 64, window=13, sinks=torch.linspace(-3, 5, 14)),
    "latent": form_of(6, 1, 48, latent=32),
    "latent, odd": form_of(3, 1, 28, latent=18, softcap=2.0),
    "latent, wide": form_of(20, 1, 320, latent=288),
    "latent, in a window": form_of(5, 1, 80, latent=64, window=13),
    "both ways": form_of(4, 2, 64, causal=False),
    "both ways by slopes": form_of(4, 2, 64, causal=False, slopes=torch.tensor([0.5, 0.02, 0.0, 1.3])),
    "both ways in a window": form_of(4, 2, 64, causal=False, window=7),
}


class Scene:
    """Three sequences of some length, in shuffled blocks of a cache which held something else before."""

    lengths = (150, 1, 77)

    def __init__(self, form: AttentionForm, block_size: int, cached: torch.dtype | None = None) -> None:
        """`cached` is the format of the cache, if it has one of its own."""
        self.form, self.block_size, self.cached = form, block_size, cached
        counts = [-(-length // block_size) for length in self.lengths]
        self.num_blocks = sum(counts) + 1
        order = torch.randperm(self.num_blocks).tolist()
        self.blocks = [order[sum(counts[:i]) : sum(counts[: i + 1])] for i in range(len(counts))]
        self.qkv = [torch.randn(n, form.given_heads * form.head_dim) for n in self.lengths]

    def filled(self, ops: Ops, dtype: torch.dtype) -> tuple[list[Tensor], LayerCache]:
        """The queries of each sequence, and the cache with all of them."""
        cache = empty_cache(self.num_blocks, self.block_size, self.form, self.cached or dtype, fill=float("nan"))
        chunks = [(blocks, 0, n) for blocks, n in zip(self.blocks, self.lengths, strict=True)]
        queries = ops.store_kv(torch.cat(self.qkv).to(dtype), self.form, cache, batch_of(self.block_size, *chunks))
        return list(queries.split(self.lengths)), cache

    def attend(
        self,
        ops: Ops,
        dtype: torch.dtype,
        *chunks: tuple[int, int, int],
        filled: tuple[list[Tensor], LayerCache] | None = None,
    ) -> Tensor:
        """Each chunk is a sequence, where it starts and ends; as if what follows were not there yet. What `filled` has returned
        may be used again."""
        queries, cache = filled or self.filled(ops, dtype)
        batch = batch_of(self.block_size, *((self.blocks[i], start, end - start) for i, start, end in chunks))
        return ops.attention(torch.cat([queries[i][start:end] for i, start, end in chunks]), self.form, cache, batch)
