"""Which blocks a sequence has: found, shared, grown, given up, swapped. The scheduler decides who; this decides where.

Blocks are in three places, and a sequence's tokens are in the first or the last of them:

    device pool    held by running sequences            plan.copies between blocks of it
       |   ^
     swap_out  swap_in
       v   |
    host pool      held by waiting sequences that were swapped out

A block that is written is held by one sequence alone. Whoever is to write into a block that others hold, or may
find, gets a copy of it.
"""

from collections.abc import Iterable

from quire_engine.core.blocks import BlockPool
from quire_engine.core.sequence import NEVER, Sequence
from quire_engine.core.step import StepPlan

__all__ = ["Memory"]


class Memory:
    def __init__(
        self, pool: BlockPool, host: BlockPool, *, prefix_caching: bool = True, swap_cost: float = 0.0
    ) -> None:
        """`swap_cost`: how long it takes to move a block out and in again, as a share of computing it again."""
        self._pool = pool
        self._host = host
        self._prefix_caching = prefix_caching
        self._swap_cost = swap_cost
        self._num_findable = 0  # blocks of prompts, that ever became so

    @property
    def usage(self) -> float:
        return 1 - self._pool.num_free / self._pool.num_blocks

    @property
    def num_tokens(self) -> int:
        return self._pool.num_blocks * self._pool.block_size

    def could_hold(self, num_tokens: int) -> bool:
        """With nothing else in it."""
        return self._pool.blocks_for(num_tokens) <= self._pool.num_blocks

    def admit(self, plan: StepPlan, sequence: Sequence, spare: int) -> bool:
        """Give `sequence` the blocks of all its tokens, if then `spare` are left; `num_computed` says what they hold."""
        pool = self._pool
        free, findable = sequence.refused_at
        if pool.num_free <= free and self._num_findable == findable:
            return False
        last = sequence.num_tokens - 1  # position of the token that is computed in any case, to sample from
        found = [] if sequence.host_blocks else self._find(sequence)
        shared = found[: last // pool.block_size]  # in these nothing is written; in the one behind, there is
        partial = found[len(shared) : len(shared) + 1] if last % pool.block_size else []
        new = pool.blocks_for(sequence.num_tokens) - len(shared)
        if pool.num_free < new + spare + sum(map(pool.is_free, shared)):
            sequence.refused_at = pool.num_free, self._num_findable
            return False
        sequence.refused_at = NEVER
        pool.share(shared)
        fresh = pool.allocate(new)
        sequence.blocks = shared + fresh
        if sequence.host_blocks:
            plan.swap_in += zip(sequence.host_blocks, fresh, strict=False)
            self.drop_swapped(sequence)
            return True
        sequence.num_computed = len(shared) * pool.block_size
        if partial:
            plan.copies.append((partial[0], fresh[0]))
            sequence.num_computed = last
        return True

    def has_place(self, sequence: Sequence) -> bool:
        """For its next token, in the blocks it has."""
        return sequence.num_computed < len(sequence.blocks) * self._pool.block_size

    def grow(self, plan: StepPlan, sequence: Sequence) -> bool:
        """Give a running sequence one more block; False if none is free."""
        if not self._pool.num_free:
            return False
        assert sequence.slot is not None
        (block,) = self._pool.allocate(1)
        plan.new_blocks.append((sequence.slot, len(sequence.blocks), block))
        sequence.blocks.append(block)
        return True

    def note_computed(self, sequence: Sequence) -> None:
        """Make full blocks of known tokens findable."""
        size = self._pool.block_size
        num_full = min(sequence.num_computed, len(sequence.tokens)) // size
        if num_full == sequence.num_registered or not self._prefix_caching:
            return
        for index in range(sequence.num_registered, min(num_full, len(sequence.blocks))):
            tokens = tuple(sequence.tokens[index * size : (index + 1) * size])
            sequence.prefix = self._pool.register(sequence.blocks[index], sequence.prefix, tokens)
            sequence.num_registered = index + 1
            self._num_findable += index * size < sequence.num_prompt

    def victim(self, candidates: list[Sequence]) -> Sequence | None:
        """Who makes way: of those with the least priority, the one that loses least; the youngest of equals."""
        if not candidates:
            return None
        lowest = max(sequence.rank[0] for sequence in candidates)
        return min(
            (sequence for sequence in candidates if sequence.rank[0] == lowest),
            key=lambda sequence: (not (own := self._own_blocks(sequence)), own, -sequence.rank[1]),
        )

    def give_up(self, plan: StepPlan, sequence: Sequence) -> None:
        """Take its blocks from a preempted sequence: to the host if that is cheaper than computing them again."""
        num_used = self._pool.blocks_for(sequence.num_computed)
        if num_used <= self._host.num_free and num_used * self._swap_cost < self._own_blocks(sequence):
            sequence.host_blocks = self._host.allocate(num_used)
            plan.swap_out += zip(sequence.blocks, sequence.host_blocks, strict=False)
            num_computed = sequence.num_computed
            self.release(sequence)
            sequence.num_computed = num_computed
        else:
            self.release(sequence)

    def release(self, sequence: Sequence, keep: bool = True) -> None:
        """Take the blocks; what is full of them can still be found, if we `keep` it."""
        if keep:
            self.note_computed(sequence)
        self._pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = sequence.num_registered = 0
        sequence.prefix = sequence.root

    def drop_swapped(self, sequence: Sequence) -> None:
        self._host.release(sequence.host_blocks)
        sequence.host_blocks = []

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Raise unless the books of both pools balance, and what was computed has a place of its own to go on."""
        sequences = list(sequences)
        self._pool.check([sequence.blocks for sequence in sequences])
        self._host.check([sequence.host_blocks for sequence in sequences])
        size = self._pool.block_size
        for sequence in sequences:
            held = len(sequence.blocks) or len(sequence.host_blocks)
            if held * size < sequence.num_computed:
                raise AssertionError(f"request {sequence.request.id} has computed tokens without a block")
            writes = sequence.blocks[sequence.num_computed // size :]
            if any(map(self._pool.is_shared, writes)):
                raise AssertionError(f"request {sequence.request.id} writes into a block that others hold")

    # ------------------------------------------------------------------

    def _find(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of its tokens: its leader's, or what the prefix cache has."""
        if sequence.num_scored < self._wanted_scores(sequence):
            return []  # what is found is not computed, and so not scored
        leader = sequence.leader
        if leader is not None and leader.prompt_ready and len(sequence.tokens) == sequence.num_prompt:
            return leader.blocks[: self._pool.blocks_for(sequence.num_prompt)]
        return self._pool.match(sequence.root, sequence.tokens) if self._prefix_caching else []

    @staticmethod
    def _wanted_scores(sequence: Sequence) -> int:
        return 0 if sequence.request.params.prompt_logprobs is None else sequence.num_prompt - 1

    def _own_blocks(self, sequence: Sequence) -> int:
        """How many blocks would be free, and lost, without it."""
        return sum(not self._pool.is_shared(block) for block in sequence.blocks)
