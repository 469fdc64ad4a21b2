"""Some rows of a step's logits, and what is kept by slot, gathered for them.

Parameters live on the host, in arrays by slot, and are gathered by one fancy index a step. What is longer than a
number, such as a list of token ids, is kept by slot as well; in a steady batch it is uploaded once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Rows", "SlotLists", "in_blocks", "upload"]

BLOCK = {"cpu": 1 << 20}  # elements of [rows, vocabulary] that are worked on at a time: they stay in a core's cache
LARGE_BLOCK = 1 << 26  # on a GPU: enough to fill it, and few enough that the copies do not fill its memory


@dataclass(frozen=True, slots=True)
class Rows:
    index: NDArray[np.int64]  # [R] their number in the logits
    slots: NDArray[np.int64]  # [R]
    positions: NDArray[np.int64]  # [R] of the token that is being chosen

    def __len__(self) -> int:
        return len(self.index)

    def where(self, which: NDArray[Any]) -> "Rows":
        """Some of them: a mask, or numbers of rows of this."""
        if which.dtype == np.bool_ and which.all():
            return self
        return Rows(self.index[which], self.slots[which], self.positions[which])


class SlotLists:
    """For each slot some columns of equal length; for some rows, those of their slots, one after another."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lists: dict[int, tuple[NDArray[Any], ...]] = {}
        self._gathered_for: bytes | None = None
        self._gathered: list[Tensor] = []

    def put(self, slot: int, *columns: NDArray[Any]) -> None:
        self._lists[slot] = columns
        self._gathered_for = None

    def gather(self, rows: Rows) -> list[Tensor]:
        """[N] the index of the row that an entry belongs to, then the columns [N, ...]; the rows have an entry at least."""
        asked = rows.index.tobytes() + rows.slots.tobytes()
        if asked != self._gathered_for:
            lists = [self._lists[slot] for slot in rows.slots.tolist()]
            owner = np.repeat(rows.index, [len(columns[0]) for columns in lists])
            columns = [np.concatenate(parts) for parts in zip(*lists, strict=True)]
            self._gathered = [upload(column, self._device) for column in (owner, *columns)]
            self._gathered_for = asked
        return self._gathered


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """From pinned memory, so that the host need not wait for the device."""
    tensor = torch.from_numpy(values)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def in_blocks(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Cut `count` rows so that no cut has many more than a block's elements."""
    size = max(1, BLOCK.get(device.type, LARGE_BLOCK) // width)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
