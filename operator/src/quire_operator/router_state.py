"""What routers hold: of the one in this process, or of those of a cluster, which are asked for `GET /state`."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from quire_operator.scrape import ask
from quire_router import Demand

__all__ = ["InProcess", "NoRouter", "Routers"]


class NoRouter:
    """Requests go to the engines' Service, which holds nothing."""

    async def held(self) -> None:
        return None


class InProcess:
    """`demand` is the router's."""

    def __init__(self, demand: Callable[[], Mapping[str, Demand]]) -> None:
        self._demand = demand

    async def held(self) -> Mapping[str, int]:
        return {model: demand.held for model, demand in self._demand().items()}


class Routers:
    """All replicas of the router; `addresses` are theirs now. One that does not answer holds nothing that we know of; when
    none does, nobody holds."""

    def __init__(self, addresses: Callable[[], Iterable[str]]) -> None:
        self._addresses = addresses

    async def held(self) -> Mapping[str, int] | None:
        states = await asyncio.gather(*(ask(where, "/state") for where in self._addresses()))
        if not any(states):
            return None
        held: Counter[str] = Counter()
        for state in states:
            for model in _models(state):
                held[model["name"]] += model["held"]
        return held


def _models(state: Any) -> list[dict[str, Any]]:
    models = state.get("models") if isinstance(state, dict) else None
    return [m for m in models or [] if isinstance(m, dict) and isinstance(m.get("held"), int) and "name" in m]
