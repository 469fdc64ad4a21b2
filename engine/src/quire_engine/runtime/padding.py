"""A batch that stays where it is: the arrays of a bucket's size, at the same addresses for every step that uses it.

Rows beyond those of the step are nobody's. Each is a chunk of one token at the beginning of a sequence, whose key and
value go to a block that no sequence has; it looks at one token, whichever, and nobody reads what comes of it.
"""

import torch
from torch import Tensor

from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.buckets import Bucket

__all__ = ["PaddedBatch", "has_single_tokens"]


def has_single_tokens(batch: ForwardBatch) -> bool:
    """A row each, as when nothing but answers is being written."""
    return len(batch.tokens) == len(batch.context_len)


class PaddedBatch:
    def __init__(self, bucket: Bucket, block_size: int, nobodys_block: int, device: torch.device) -> None:
        rows = bucket.rows

        def of(value: int, *size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.full(size, value, dtype=dtype, device=device)

        self._nobodys_place = nobodys_block * block_size
        self.batch = ForwardBatch(
            tokens=of(0, rows),
            positions=of(0, rows),
            places=of(self._nobodys_place, rows),
            query_start=torch.arange(rows + 1, dtype=torch.int32, device=device),
            context_len=of(1, rows, dtype=torch.int32),
            longest_single=bucket.context,
            block_tables=of(nobodys_block, rows, -(-bucket.context // block_size), dtype=torch.int32),
            follow_rows=of(0, 0),
            follow_slots=of(0, 0),
        )

    def load(self, step: ForwardBatch) -> None:
        """Take a step that fits. What other steps have left in rows beyond it are ids, positions and blocks that exist."""
        rows, ours = len(step.tokens), self.batch
        ours.tokens[:rows].copy_(step.tokens)
        ours.positions[:rows].copy_(step.positions)
        ours.places[:rows].copy_(step.places)
        ours.context_len[:rows].copy_(step.context_len)
        ours.block_tables[:rows, : step.block_tables.shape[1]].copy_(step.block_tables)
        if rows < len(ours.tokens):
            ours.places[rows:].fill_(self._nobodys_place)
            ours.context_len[rows:].fill_(1)
