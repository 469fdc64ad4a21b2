"""The last minute of a model: requests, tokens, and how long they took. The clock is an argument; memory is bounded."""

from collections import deque
from dataclasses import dataclass

__all__ = ["Minute"]

SPAN_S = 60.0
MOST_SAMPLES = 4096  # the newest; at more than 68 requests a second, quantiles are of less than a minute


@dataclass(frozen=True, slots=True)
class _Sample:
    at: float
    tokens: int
    failed: bool
    first_s: float | None  # until the first byte of a stream's answer
    token_s: float | None  # between its tokens, the mean


class Minute:
    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque(maxlen=MOST_SAMPLES)

    def add(self, at: float, *, tokens: int, failed: bool, first_s: float | None, token_s: float | None) -> None:
        self._samples.append(_Sample(at, tokens, failed, first_s, token_s))

    def summary(self, now: float) -> dict[str, object]:
        while self._samples and self._samples[0].at <= now - SPAN_S:
            self._samples.popleft()
        tokens = sum(sample.tokens for sample in self._samples)
        return {
            "requests": len(self._samples),
            "failed": sum(sample.failed for sample in self._samples),
            "tokens": tokens,
            "tokens_per_s": round(tokens / SPAN_S, 2),
            "first_token_s": _quantiles([s.first_s for s in self._samples if s.first_s is not None]),
            "time_per_token_s": _quantiles([s.token_s for s in self._samples if s.token_s is not None]),
        }


def _quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 6) for name, share in _SHARES}


_SHARES = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
