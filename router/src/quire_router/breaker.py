"""When an engine that fails requests gets no more of them, and when it is tried again: a state machine without a clock.

    closed  --FAILURES in a row-->  open  --its pause is over-->  half open  --one request fails-->  open, twice as long
       ^------------------------------------------------------------- one request succeeds --'

Half open, one request goes out, and another after each pause: an answer may take minutes, and says nothing until it has ended.

A failure is a connection that could not be made or that broke, or an answer of 500 or more other than 503: what a
refusal says of the engine is health.py's to judge. Every transition returns a new breaker.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

__all__ = ["FAILURES", "LONGEST_PAUSE_S", "PAUSE_S", "Breaker", "Circuit"]

FAILURES = 5
PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Circuit(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    failures: int = 0  # in a row
    opened: float | None = None  # when
    pause_s: float = PAUSE_S  # how long it stays open
    tried: float | None = None  # when the last request of half open went out

    def circuit(self, now: float) -> Circuit:
        if self.opened is None:
            return Circuit.CLOSED
        return Circuit.HALF_OPEN if now >= self.opened + self.pause_s else Circuit.OPEN

    def allows(self, now: float) -> bool:
        circuit = self.circuit(now)
        waits = self.tried is not None and now < self.tried + self.pause_s
        return circuit is Circuit.CLOSED or (circuit is Circuit.HALF_OPEN and not waits)

    def begin(self, now: float) -> "Breaker":
        """A request that was allowed goes out."""
        return replace(self, tried=now) if self.circuit(now) is Circuit.HALF_OPEN else self

    def succeeded(self) -> "Breaker":
        return _CLOSED

    def failed(self, now: float) -> "Breaker":
        if self.circuit(now) is Circuit.HALF_OPEN:
            return Breaker(failures=FAILURES, opened=now, pause_s=min(2 * self.pause_s, LONGEST_PAUSE_S))
        failures = min(self.failures + 1, FAILURES)
        opened = now if failures == FAILURES and self.opened is None else self.opened
        return replace(self, failures=failures, opened=opened)

    def abandoned(self) -> "Breaker":
        """The request ended and says nothing of the engine: its client left. Another may try."""
        return replace(self, tried=None) if self.tried is not None else self


_CLOSED = Breaker()
