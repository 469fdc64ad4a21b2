"""What surrounds an exchange: the engines, the clock, the holds; and the words between the router and whoever runs it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from quire_router.answer import Line
from quire_router.fleet import Fleet
from quire_router.hold import Hold
from quire_router.registry import Model
from quire_router.upstream import Upstream

__all__ = ["ALWAYS_TOLD", "Client", "Demand", "Scene", "Wake", "World"]

Wake = Callable[[str], None]  # a model's name; called in the event loop, must not block


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    held: int
    in_flight: int
    tokens: int  # estimated, of those in flight
    resource: str = ""  # that declares the model


class World(Protocol):
    """Whoever tells the router what there is, while it runs."""

    def missing(self) -> str | None:
        """What was not told yet, without which the router is not ready."""
        ...

    def silent_s(self) -> float:
        """For how long it could not tell; 0 while it can. What it told last holds."""
        ...


class _AlwaysTold:
    def missing(self) -> None:
        return None

    def silent_s(self) -> float:
        return 0.0


ALWAYS_TOLD: World = _AlwaysTold()  # by a file, or by who runs it


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
