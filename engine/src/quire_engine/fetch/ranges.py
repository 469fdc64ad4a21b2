"""Which bytes of a file are there: disjoint intervals, in order. Pure.

[0, 4) [8, 9)   of 12 bytes:   prefix 4, missing [4, 8) and [9, 12)
"""

from bisect import bisect_left
from collections.abc import Iterator

__all__ = ["Ranges"]


class Ranges:
    def __init__(self) -> None:
        self._held: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._held)

    @property
    def total(self) -> int:
        return sum(end - start for start, end in self._held)

    @property
    def prefix(self) -> int:
        """How far everything is there, from the first byte on."""
        return self._held[0][1] if self._held and self._held[0][0] == 0 else 0

    def add(self, start: int, end: int) -> int:
        """How many of these bytes were not there before."""
        before = self.total
        if end > start:
            left = bisect_left(self._held, start, key=lambda held: held[1])  # touches or overlaps from here
            right = left
            while right < len(self._held) and self._held[right][0] <= end:
                start, end = min(start, self._held[right][0]), max(end, self._held[right][1])
                right += 1
            self._held[left:right] = [(start, end)]
        return self.total - before

    def gap(self, start: int, end: int) -> tuple[int, int] | None:
        """The first missing stretch within [start, end)."""
        for held_start, held_end in self._held:
            if held_end <= start:
                continue
            if held_start > start:
                return (start, min(end, held_start)) if start < end else None
            start = held_end
        return (start, end) if start < end else None
