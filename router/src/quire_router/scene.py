"""What surrounds an exchange: the engines, the clock, the holds; and the words between the router and whoever runs it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from quire_router.answer import Line
from quire_router.fleet import Fleet
from quire_router.hold import Hold
from quire_router.registry import Model
from quire_router.upstream import Upstream

__all__ = ["Client", "Demand", "Scene", "Wake"]

Wake = Callable[[str], None]  # a model's name; called in the event loop, must not block


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    held: int
    in_flight: int
    tokens: int  # estimated, of those in flight


class Client(Line, Protocol):
    upstream: Upstream | None  # held back while the client reads slowly


@dataclass(slots=True, kw_only=True)
class Scene:
    """What all exchanges share."""

    fleet: Fleet
    find: Callable[[str], Model | None]  # in the registry of now
    hold: Callable[[str], Hold]  # of a model
    wake: Callable[[str], None]
    turn: Callable[[str], int]
    changed: Callable[[float], Awaitable[None]]  # wait so long at most for news of engines
    clock: Callable[[], float]
    retried: Callable[[str, str], None]  # model and cause, for the metrics
    turning_away: bool = False  # the router stops, and holds nothing any more
