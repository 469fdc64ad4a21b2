"""A request on its way: its tokens, how far they are computed, where they live.

The one mutable record of the core. Only the scheduler changes it, and its status only by `become`.

    num_computed <= num_known <= num_tokens = num_known + num_in_flight

`num_in_flight` counts tokens that a launched step will sample: they have a position and a place in the
KV cache, but no id yet. This is what lets step N+1 be scheduled before step N has come back.
"""

from enum import Enum, auto

from quire_engine.core.request import Request
from quire_engine.core.stops import StopMatcher

__all__ = ["Sequence", "Status"]


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),  # admitted; aborted, or ended by a token in flight
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),  # preempted; ended
    Status.FINISHED: frozenset(),
}


class Sequence:
    __slots__ = (
        "blocks",
        "max_length",
        "num_computed",
        "num_in_flight",
        "request",
        "slot",
        "status",
        "stops",
        "tokens",
    )

    def __init__(self, request: Request, max_length: int) -> None:
        self.request = request
        self.status = Status.WAITING
        self.tokens: list[int] = list(request.prompt)
        self.num_in_flight = 0
        self.num_computed = 0
        self.max_length = max_length  # tokens, prompt and output
        self.blocks: list[int] = []
        self.slot: int | None = None
        self.stops = StopMatcher(request.params.stop)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to compute; none once the last allowed token is known or on its way."""
        return 0 if self.num_tokens >= self.max_length else self.num_tokens - self.num_computed

    def become(self, status: Status) -> None:
        if status not in TRANSITIONS[self.status]:
            raise AssertionError(f"request {self.request.id}: {self.status.name} cannot become {status.name}")
        self.status = status
