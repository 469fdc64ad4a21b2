"""How much a key may ask for: token buckets, with the clock as an argument.

A bucket holds what a minute allows, and fills evenly. A request is let in when its bucket has what it costs; what it
cost indeed is known at its end and may leave a debt, which later requests wait for. Nothing runs in the background.
"""

from dataclasses import dataclass

__all__ = ["Allowance", "Bucket", "Limits"]


@dataclass(slots=True)
class Bucket:
    per_minute: float
    level: float
    at: float  # when it had that level

    @classmethod
    def full(cls, per_minute: float, now: float) -> "Bucket":
        return cls(per_minute, per_minute, now)

    def wait_s(self, cost: float, now: float) -> float:
        """How long until `cost` can be taken; 0 is now. What costs more than the bucket holds waits for a full one."""
        self._fill(now)
        missing = min(cost, self.per_minute) - self.level
        return max(0.0, missing) * 60 / self.per_minute

    def take(self, cost: float, now: float) -> None:
        """Below zero, too; a negative cost gives back."""
        self._fill(now)
        self.level = min(self.per_minute, self.level - cost)

    def _fill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
            self.at = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_output_tokens: int | None = None  # of one request, all its answers together


class Allowance:
    """What is left of one key's limits."""

    def __init__(self, limits: Limits, now: float) -> None:
        self.limits = limits
        requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
        self._requests = None if requests is None else Bucket.full(requests, now)
        self._tokens = None if tokens is None else Bucket.full(tokens, now)

    def take(self, tokens: int, now: float) -> tuple[str, float] | None:
        """Let a request in that will cost about so many tokens; or which limit is in its way, and for how long."""
        waits = (
            ("requests", self._requests.wait_s(1, now) if self._requests else 0.0),
            ("tokens", self._tokens.wait_s(tokens, now) if self._tokens else 0.0),
        )
        name, wait_s = max(waits, key=lambda each: each[1])
        if wait_s > 0:
            return name, wait_s
        if self._requests:
            self._requests.take(1, now)
        self.settle(tokens, now)
        return None

    def settle(self, tokens: int, now: float) -> None:
        """So many more than were taken when it came in; negative: fewer."""
        if self._tokens:
            self._tokens.take(tokens, now)
