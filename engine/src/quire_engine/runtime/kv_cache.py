"""The memory of the KV cache: allocated once, never again.

    layers x [ keys, values ] x [num_blocks, kv_heads, block_size, head_dim]

Position p of a sequence lives in row p % block_size of block blocks[p // block_size]; its `place` is
block * block_size + p % block_size. One block more than there are is nobody's: rows that only fill up a batch write
there (padding.py). Blocks are copied and swapped whole, so that the order of numbers inside one is the kernels' own affair.
"""

import torch
from torch import Tensor

from quire_api.footprint import ModelShape
from quire_engine.ops import LayerCache
from quire_engine.runtime.pages import zeros

__all__ = ["KVCache"]


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
        self.nobodys_block = num_blocks

        moved = torch.uint8 if dtype.itemsize == 1 else dtype  # torch moves numbers of 8 bits as bytes only

        def blocks(count: int, where: torch.device) -> Tensor:
            size = (shape.layers, 2, count, shape.kv_heads, block_size, shape.head_dim)
            if device.type == "cpu":
                return zeros(size, moved, areas=2 * shape.layers)
            return torch.zeros(size, dtype=moved, device=where, pin_memory=where != device)

        self._data = blocks(num_blocks + 1, device)
        self._host = blocks(num_host_blocks, torch.device("cpu"))
        self._layers: list[LayerCache] = [(layer[0].view(dtype), layer[1].view(dtype)) for layer in self._data]

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


def _move(source: Tensor, target: Tensor, pairs: list[tuple[int, int]]) -> None:
    if pairs:
        sources, targets = torch.tensor(pairs).unbind(dim=1)
        moved = source.index_select(2, sources.to(source.device))
        target.index_copy_(2, targets.to(target.device), moved.to(target.device))
