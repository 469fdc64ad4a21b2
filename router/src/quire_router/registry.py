"""Who serves which model: a snapshot of the world, replaced whole by whoever watches it.

It comes from resources, not from engines that were seen: a model without any engine is known, and a request for it
is held. Knows nothing of load, health or connections. Never changed in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Endpoint", "Model", "Registry", "Scaling", "Strategy", "Weigh"]


class Strategy(StrEnum):
    PREFIX_AFFINITY = "PrefixAffinity"  # requests that begin alike go to one engine, unless it has too much to do
    LEAST_LOADED = "LeastLoaded"
    ROUND_ROBIN = "RoundRobin"


class Weigh(StrEnum):
    """What the load of an engine is counted in."""

    REQUESTS = "Requests"
    TOKENS = "Tokens"  # estimated: the prompt's bytes, and what may be answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One engine. `address` is `host:port`, or the path of a Unix socket."""

    address: str
    draining: bool = False  # about to end: gets nothing new


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """A decision to have another number of replicas."""

    at: float  # seconds since 1970: it may have been made by another process
    before: int
    after: int
    reason: str  # for a person


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    name: str
    aliases: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    desired: int | None = None  # replicas that are wanted; None: nobody says
    loading: int = 0  # replicas that were started and have no endpoint yet
    history: tuple[Scaling, ...] = ()  # the latest decisions, newest first; for /state
    groups: tuple[str, ...] = ()  # of API keys that may use it; none: every key may
    strategy: Strategy = Strategy.PREFIX_AFFINITY
    weigh: Weigh = Weigh.REQUESTS
    max_inside: int = 2000  # requests in flight and held; more are answered 429
    hold_requests: int = 200  # requests that wait for an engine; more are answered 429
    hold_s: float = 300.0  # how long one waits
    resource: str = ""  # that declares it, as namespace/name; demand is told by this

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


@dataclass(frozen=True, slots=True)
class Registry:
    """Of two models with one name, the first has it."""

    models: tuple[Model, ...] = ()
    _by_name: Mapping[str, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {name: model for model in reversed(self.models) for name in model.names}
        object.__setattr__(self, "_by_name", by_name)

    def find(self, name: str) -> Model | None:
        return self._by_name.get(name)
