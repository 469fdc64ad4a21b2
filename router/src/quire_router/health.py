"""What an engine's answers to /readyz say of it: pure, without clock or sockets.

    loading   not asked yet, or it answers 503 for any other reason
    ready     it answers anything else: a server that has no /readyz serves as long as it answers
    draining  it answers 503 and says so: it finishes what it has
    stale     nobody answers: it is in the registry and gone, or stopped, or hangs

One missed answer takes an engine out of the choice, which costs nothing while others are there. Work that it has is taken
from it only after `MOVE_AFTER_S`, and once: a machine that has too much to do is slow to answer, too, and would get its
own work on top from others.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = [
    "GIVE_UP_S",
    "MOVE_AFTER_S",
    "PROBE_EVERY_S",
    "PROBE_SOON_S",
    "PROBE_TIMEOUT_S",
    "Health",
    "Reported",
    "State",
    "reported_by",
]

PROBE_EVERY_S = 0.5
PROBE_SOON_S = 0.2  # of an engine that is not ready: somebody may be waiting for it
PROBE_TIMEOUT_S = 0.5
MOVE_AFTER_S = 3.0  # of silence, after which requests without a byte of an answer go elsewhere if they can
GIVE_UP_S = 15.0  # of silence, after which answers that have begun are ended with an error


class State(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What an engine says of itself beside being ready: for people to see, not to route by."""

    running: int
    waiting: int
    kv_usage: float  # share of the blocks, 0 to 1


def reported_by(text: str) -> Reported | None:
    """None: it is a server that says no more than that it is ready."""
    try:
        said: Any = json.loads(text)
        running, waiting, kv_usage = int(said["running"]), int(said["waiting"]), float(said["kv_usage"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    sound = running >= 0 and waiting >= 0 and 0 <= kv_usage <= 1  # NaN is not, and would be no JSON in /state
    return Reported(running=running, waiting=waiting, kv_usage=kv_usage) if sound else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    state: State = State.LOADING
    silent_since: float | None = None

    def answered(self, status: int, text: str) -> "Health":
        if status != 503:
            return Health(state=State.READY)
        return Health(state=State.DRAINING if "draining" in text else State.LOADING)

    def missed(self, now: float) -> "Health":
        """No answer in time, or no connection."""
        since = now if self.silent_since is None else self.silent_since
        return Health(state=State.STALE, silent_since=since)

    def silent_s(self, now: float) -> float:
        return 0.0 if self.silent_since is None else now - self.silent_since

    @property
    def probe_in_s(self) -> float:
        return PROBE_EVERY_S if self.state is State.READY else PROBE_SOON_S
