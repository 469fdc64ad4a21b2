"""Hands out the blocks of the KV cache, and finds those that already hold a prompt's beginning.

The pool knows block numbers and the tokens of full blocks, not what is in memory. A block is, at any time,

    held      by one owner or several, which then share it: nobody writes into it any more
    reusable  free, but what it holds can still be found; taken last, the least recently used first
    empty     free, with nothing worth finding

A full block is found by its `Prefix`: the chain of the tokens of all blocks up to it, from a root that names the
domain. Equal chains hash equal, and a hit compares the tokens: no collision can mix up two prompts. `check`
proves from the owners' own lists that no block is lost and none is held by mistake.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Sequence

__all__ = ["BlockPool", "Prefix"]


class Prefix:
    """The tokens of a block, and of all blocks before it. A key of dictionaries: equal by content."""

    __slots__ = ("_hash", "parent", "tokens")

    def __init__(self, parent: "Prefix | None", tokens: tuple[Hashable, ...]) -> None:
        self._hash: int = hash((parent._hash if parent else 0, tokens))
        self.parent = parent
        self.tokens = tokens

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        """Walks back to where the chains are one object, which is at once unless an ancestor was evicted."""
        if not isinstance(other, Prefix):
            return NotImplemented
        mine: Prefix | None = self
        theirs: Prefix | None = other
        while mine is not theirs:
            if mine is None or theirs is None or mine._hash != theirs._hash or mine.tokens != theirs.tokens:
                return False
            mine, theirs = mine.parent, theirs.parent
        return True


class BlockPool:
    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 0 or block_size < 1:
            raise ValueError(f"a pool needs blocks of some tokens, not {num_blocks} of {block_size}")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._num_owners = [0] * num_blocks
        self._prefix_of: list[Prefix | None] = [None] * num_blocks
        self._block_of: dict[Prefix, int] = {}
        self._empty = list(range(num_blocks - 1, -1, -1))  # a stack: what was freed last is still in the CPU's cache
        self._reusable: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        return len(self._empty) + len(self._reusable)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def is_free(self, block: int) -> bool:
        return self._num_owners[block] == 0

    def is_shared(self, block: int) -> bool:
        return self._num_owners[block] > 1

    # ------------------------------------------------------------------ holding

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks to write into; the caller has looked at `num_free`."""
        if count > self.num_free:
            raise AssertionError(f"{count} blocks asked, {self.num_free} free: check num_free first")
        return [self._take() for _ in range(count)]

    def share(self, blocks: Iterable[int]) -> None:
        """One more owner for each, which must not write into them."""
        for block in blocks:
            if self._num_owners[block] == 0:
                del self._reusable[block]
            self._num_owners[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One owner less for each. The last of them is the first to be taken again: beginnings are shared more often."""
        for block in reversed(blocks):
            if self._num_owners[block] == 0:
                raise AssertionError(f"block {block} released twice")
            self._num_owners[block] -= 1
            if self._num_owners[block] == 0:
                if self._prefix_of[block] is None:
                    self._empty.append(block)
                else:
                    self._reusable[block] = None

    def _take(self) -> int:
        if self._empty:
            block = self._empty.pop()
        else:
            block, _ = self._reusable.popitem(last=False)
            prefix = self._prefix_of[block]
            assert prefix is not None  # that is what makes it reusable
            del self._block_of[prefix]
            self._prefix_of[block] = None
        self._num_owners[block] = 1
        return block

    # ------------------------------------------------------------------ finding

    def register(self, block: int, parent: Prefix, tokens: tuple[int, ...]) -> Prefix:
        """Make a full block findable, if no other block holds the same; its prefix, to be the next one's parent."""
        prefix = Prefix(parent, tokens)
        known = self._block_of.setdefault(prefix, block)
        stored = self._prefix_of[known]
        if stored is None:
            stored = self._prefix_of[known] = prefix
        return stored  # the very key, so that whoever goes on from it is compared with it at once

    def match(self, root: Prefix, tokens: Sequence[int]) -> list[int]:
        """The blocks that hold the longest known beginning of `tokens`, full blocks only. They may be free: `share` them."""
        found = []
        prefix: Prefix | None = root
        for start in range(0, len(tokens) - self.block_size + 1, self.block_size):
            block = self._block_of.get(Prefix(prefix, tuple(tokens[start : start + self.block_size])))
            if block is None:
                break
            prefix = self._prefix_of[block]  # the chain that is stored: the next comparison ends at once
            found.append(block)
        return found

    def forget(self) -> None:
        """Let nothing be found any more."""
        self._block_of.clear()
        self._prefix_of = [None] * self.num_blocks
        self._empty += self._reusable
        self._reusable.clear()

    def check(self, owners: Iterable[Sequence[int]]) -> None:
        """Raise unless every block is held by just the given owners or free once, and found as what it holds."""
        held = Counter(block for blocks in owners for block in blocks)
        free = [*self._empty, *self._reusable]
        if [held[block] for block in range(self.num_blocks)] != self._num_owners:
            raise AssertionError(f"owners hold {dict(held)}, the pool counts {self._num_owners}")
        if sorted([*held, *free]) != list(range(self.num_blocks)):
            raise AssertionError(f"{self.num_blocks} blocks, but held {sorted(held)} and free {sorted(free)}")
        found = {block: prefix for prefix, block in self._block_of.items()}
        if found != {block: prefix for block, prefix in enumerate(self._prefix_of) if prefix is not None}:
            raise AssertionError("a block is findable under a prefix it does not hold")
        if not all(self._prefix_of[block] for block in self._reusable) or any(self._prefix_of[b] for b in self._empty):
            raise AssertionError("a free block is reusable just if it can be found")
