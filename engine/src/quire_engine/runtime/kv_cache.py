"""The memory of the KV cache: allocated once, never again.

    layers x [ keys, values ] x [num_blocks, block_size, kv_heads, head_dim]

A token at position p of a sequence lives in row `block * block_size + p % block_size` of the flat view,
where block = blocks[p // block_size]; that row number is what this code calls a `place`.
"""

import torch
from torch import Tensor

from quire_api.footprint import ModelShape

__all__ = ["KVCache"]


class KVCache:
    def __init__(
        self, shape: ModelShape, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.block_size = block_size
        size = (shape.layers, 2, num_blocks, block_size, shape.kv_heads, shape.head_dim)
        self._data = torch.zeros(size, dtype=dtype, device=device)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each [num_blocks, block_size, kv_heads, head_dim]."""
        keys, values = self._data[index]
        return keys, values
