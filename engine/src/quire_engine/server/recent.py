"""What was measured in the last minute, for who asks how it is now and not how it was since the start."""

from collections import deque

__all__ = ["Recent"]

WINDOW_S = 60.0
MOST = 2000  # of a flood the newest


class Recent:
    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=MOST)

    def add(self, now: float, value: float) -> None:
        self._seen.append((now, value))

    def quantile(self, q: float, now: float) -> float | None:
        """None when nothing was measured."""
        while self._seen and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        ordered = sorted(value for _, value in self._seen)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None
