"""Hands out the blocks of the KV cache.

The pool knows block numbers, not what is in them. The rule: every block is either free or held by
exactly one owner, and `check` proves it from the owners' own lists.
"""

from collections.abc import Iterable

__all__ = ["BlockPool"]


class BlockPool:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs blocks of some tokens, not {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: what was freed last is still in the CPU's cache
        self._is_free = bytearray(b"\x01" * num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks; the caller has looked at `num_free`."""
        if count > len(self._free):
            raise AssertionError(f"{count} blocks asked, {len(self._free)} free: check num_free first")
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._is_free[block] = 0
        return taken

    def free(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            if self._is_free[block]:
                raise AssertionError(f"block {block} freed twice")
            self._is_free[block] = 1
            self._free.append(block)

    def check(self, owners: Iterable[Iterable[int]]) -> None:
        """Raise unless free blocks and the owners' blocks are, together, each block once."""
        held = [block for blocks in owners for block in blocks]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise AssertionError(f"{self.num_blocks} blocks, but held {sorted(held)} and free {sorted(self._free)}")
