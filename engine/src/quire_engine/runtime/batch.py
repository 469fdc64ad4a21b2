"""A step's arrays, built from its plan and from what earlier plans said of each slot.

The tokens of all chunks stand one after another, T in all; each of the B chunks i owns the rows
query_start[i] .. query_start[i + 1] of every [T, ...] tensor:

    chunk          0               1     2
    rows     [ 0 1 2 3 4 ] [ 5 ] [ 6 7 8 9 ]         query_start = 0 5 6 10
    positions  0 1 2 3 4    17     32 33 34 35       context_len = 5 18 36

`context_len[i]` counts the tokens a chunk's last row may look at, itself included.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quire_engine.core.step import StepPlan

__all__ = ["BatchBuilder", "ForwardBatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    tokens: Tensor  # [T] int64 ids; what `follow_rows` names is not filled in yet
    positions: Tensor  # [T] int64
    places: Tensor  # [T] int64: where each token's key and value go (kv_cache.py)
    query_start: Tensor  # [B + 1] int32
    context_len: Tensor  # [B] int32
    longest_single: int  # context of the longest chunk of one token; 0: there is none
    block_tables: Tensor  # [B, most blocks of a chunk] int32, padded with whatever
    follow_rows: Tensor  # [F] int64: rows whose id is the last sampled one ...
    follow_slots: Tensor  # [F] int64: ... of these slots


class BatchBuilder:
    """Row `slot` of its arrays belongs to the sequence that was placed there last."""

    def __init__(self, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._tables = np.zeros((max_num_seqs, -(-max_model_len // block_size)), np.int32)
        self._num_placed = np.zeros(max_num_seqs, np.int64)
        self._tokens = [np.zeros(0, np.int64)] * max_num_seqs
        self._numbers = np.arange(max_num_seqs + 1)

    def take_in(self, plan: StepPlan) -> None:
        """Remember what is new."""
        for placed in plan.placements:
            self._tokens[placed.slot] = np.array(placed.tokens, np.int64)
            self._num_placed[placed.slot] = len(placed.tokens)
            self._tables[placed.slot, : len(placed.blocks)] = placed.blocks
        for slot, index, block in plan.new_blocks:
            self._tables[slot, index] = block

    def build(self, plan: StepPlan) -> ForwardBatch:
        """Lay out the step, which has a chunk at least."""
        slots, starts, lengths = np.array(plan.slots), np.array(plan.starts), np.array(plan.lengths)  # [B] each
        ends = starts + lengths
        if plan.num_tokens == len(slots):  # a row each, as in most steps
            query_start, owner, positions = self._numbers[: len(slots) + 1], self._numbers[: len(slots)], starts
        else:
            query_start = np.zeros(len(slots) + 1, np.int64)
            np.cumsum(lengths, out=query_start[1:])
            owner = np.repeat(self._numbers[: len(slots)], lengths)  # [T] which chunk a row is of
            positions = np.arange(query_start[-1]) + (starts - query_start[:-1])[owner]
        tables = self._tables[slots, : -(-int(ends.max()) // self._block_size)]
        places = tables[owner, positions // self._block_size].astype(np.int64) * self._block_size
        places += positions % self._block_size

        follows = starts >= self._num_placed[slots]
        tokens = np.zeros(query_start[-1], np.int64)
        for i in np.flatnonzero(~follows):
            tokens[query_start[i] : query_start[i + 1]] = self._tokens[slots[i]][starts[i] : ends[i]]
        return ForwardBatch(
            tokens=self._upload(tokens),
            positions=self._upload(positions),
            places=self._upload(places),
            query_start=self._upload(query_start.astype(np.int32)),
            context_len=self._upload(ends.astype(np.int32)),
            longest_single=int(ends[lengths == 1].max(initial=0)),
            block_tables=self._upload(tables),
            follow_rows=self._upload(query_start[:-1][follows]),
            follow_slots=self._upload(slots[follows]),
        )

    def _upload(self, values: "np.ndarray[Any, Any]") -> Tensor:
        """To the device, from pinned memory, so that the host need not wait for the step before."""
        tensor = torch.from_numpy(values)
        return tensor if self._device.type == "cpu" else tensor.pin_memory().to(self._device, non_blocking=True)
