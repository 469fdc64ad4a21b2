"""The memory of the KV cache: allocated once, never again.

    layers x ( keys, values ), each [num_blocks, kv_heads, block_size, width]

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

        def blocks(count: int, where: torch.device) -> list[Tensor]:
            """Keys and values of all layers."""
            sizes = [(count, shape.kv_heads, block_size, width) for width in shape.cached]
            numbers = [torch.Size(size).numel() for size in sizes]
            whole = (shape.layers, sum(numbers))
            if device.type == "cpu":
                areas = shape.layers * (2 if numbers[0] == numbers[1] else 1)
                data = zeros(whole, moved, areas=areas)
            else:
                data = torch.zeros(whole, dtype=moved, device=where, pin_memory=where != device)
            parts = torch.split(data, numbers, dim=1)
            return [part.view(shape.layers, *size) for part, size in zip(parts, sizes, strict=True)]

        self._data = blocks(num_blocks + 1, device)
        self._host = blocks(num_host_blocks, torch.device("cpu"))
        keys, values = (each.view(dtype) for each in self._data)
        self._layers: list[LayerCache] = list(zip(keys, values, strict=True))

    def layer(self, index: int) -> LayerCache:
        """Keys and values of a layer."""
        return self._layers[index]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        """Blocks to blocks, as if all were read before any is written: one may be the source of one pair, and the target of
        another."""
        _move(self._data, self._data, pairs)

    def swap_out(self, pairs: list[tuple[int, int]]) -> None:
        _move(self._data, self._host, pairs)

    def swap_in(self, pairs: list[tuple[int, int]]) -> None:
        _move(self._host, self._data, pairs)


def _move(source: list[Tensor], target: list[Tensor], pairs: list[tuple[int, int]]) -> None:
    if not pairs:
        return
    sources, targets = torch.tensor(pairs).unbind(dim=1)
    for old, new in zip(source, target, strict=True):
        moved = old.index_select(1, sources.to(old.device))
        new.index_copy_(1, targets.to(new.device), moved.to(new.device))
