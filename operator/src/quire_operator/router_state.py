"""What a router holds, for the autoscaler: of the one in this process, or nothing where there is none."""

from collections.abc import Callable, Mapping

from quire_router import Demand

__all__ = ["InProcess", "NoRouter"]


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
