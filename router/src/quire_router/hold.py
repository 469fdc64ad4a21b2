"""Requests that wait for an engine: how many, how long, who wakes the model, and what a stream hears meanwhile. Pure.

A request for a model at zero, or without a ready engine, is *held*. The first to be held wakes the model, once; over the
bound of requests the answer is 429 at once; over the bound of time it is 503. Nothing is sent before that, so that the
answer can have any status, except to a stream, for whose client silence looks like death: after `OPEN_AFTER_S` it gets
a 200 and from then on a comment now and then. What goes wrong afterwards can only be an event.
"""

from dataclasses import dataclass
from enum import Enum, auto

__all__ = ["COMMENT_EVERY_S", "OPEN_AFTER_S", "Due", "Entry", "Hold", "Wait"]

OPEN_AFTER_S = 10.0
COMMENT_EVERY_S = 10.0


class Entry(Enum):
    FULL = auto()
    FIRST = auto()  # and has to wake the model
    HELD = auto()


class Hold:
    """The held requests of one model."""

    __slots__ = ("held",)

    def __init__(self) -> None:
        self.held = 0

    def enter(self, most: int) -> Entry:
        if self.held >= most:
            return Entry.FULL
        self.held += 1
        return Entry.FIRST if self.held == 1 else Entry.HELD

    def leave(self) -> None:
        self.held -= 1


class Due(Enum):
    NOTHING = auto()
    COMMENT = auto()  # with the head of the answer before the first
    GIVE_UP = auto()


@dataclass(slots=True, kw_only=True)
class Wait:
    """The wait of one request."""

    since: float
    until: float
    streams: bool
    comments: int = 0  # sent so far

    def due(self, now: float) -> Due:
        if now >= self.until:
            return Due.GIVE_UP
        return Due.COMMENT if self.streams and now >= self._comment_at else Due.NOTHING

    def next_at(self) -> float:
        """When something else may be due."""
        return min(self.until, self._comment_at) if self.streams else self.until

    @property
    def _comment_at(self) -> float:
        return self.since + OPEN_AFTER_S + self.comments * COMMENT_EVERY_S
