"""The memory of the KV cache: allocated once, never again.

    layers x [ keys, values ] x [num_blocks, kv_heads, block_size, head_dim]

Position p of a sequence lives in row p % block_size of block blocks[p // block_size]; its `place` is
block * block_size + p % block_size. Blocks are copied and swapped whole, so that the order of numbers inside
one is the kernels' own affair.
"""

import ctypes
import mmap
import sys

import torch
from torch import Tensor

from quire_api.footprint import ModelShape
from quire_engine.ops import LayerCache

__all__ = ["KVCache"]

PAGE = 1 << 21  # bytes of a large one


class KVCache:
    def __init__(
        self,
        shape: ModelShape,
        num_blocks: int,
        num_host_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_size = block_size

        def blocks(count: int, where: torch.device) -> Tensor:
            size = (shape.layers, 2, count, shape.kv_heads, block_size, shape.head_dim)
            pinned = device.type == "cuda" and where != device
            memory = torch.empty(size, dtype=dtype, device=where, pin_memory=pinned)
            if where.type == "cpu":
                _ask_for_large_pages(memory)  # before anything is written: a page is small or large from then on
            return memory.zero_()

        self._data = blocks(num_blocks, device)
        self._host = blocks(num_host_blocks, torch.device("cpu"))
        self._layers: list[LayerCache] = [(layer[0], layer[1]) for layer in self._data]

    def layer(self, index: int) -> LayerCache:
        """Keys and values of a layer."""
        return self._layers[index]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Blocks to other blocks; no block is both source and target."""
        _move(self._data, self._data, pairs)

    def swap_out(self, pairs: list[tuple[int, int]]) -> None:
        _move(self._data, self._host, pairs)

    def swap_in(self, pairs: list[tuple[int, int]]) -> None:
        _move(self._host, self._data, pairs)


def _ask_for_large_pages(tensor: Tensor) -> None:
    """Blocks lie anywhere, and small pages are walked to one by one: attention took up to twice as long. A system that
    has no large pages, or does not give them, loses nothing."""
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if sys.platform == "linux" and start < end:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)


def _move(source: Tensor, target: Tensor, pairs: list[tuple[int, int]]) -> None:
    if pairs:
        sources, targets = torch.tensor(pairs).unbind(dim=1)
        moved = source.index_select(2, sources.to(source.device))
        target.index_copy_(2, targets.to(target.device), moved.to(target.device))
