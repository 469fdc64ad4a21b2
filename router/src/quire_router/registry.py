"""Who serves which model. Plain data, replaced whole by whoever watches the world."""

from dataclasses import dataclass, field

__all__ = ["Backend", "Registry", "Route"]


@dataclass(slots=True)
class Backend:
    """One engine. `address` is `host:port`, or the path of a Unix socket."""

    address: str
    open: int = field(default=0, compare=False)  # requests now being answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One model: its names, and the engines that are ready. No engine is a known model that is starting."""

    names: tuple[str, ...]
    addresses: tuple[str, ...]


class Registry:
    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._backends: dict[str, Backend] = {}

    @property
    def models(self) -> list[str]:
        return list(self._routes)

    def replace(self, routes: list[Route]) -> None:
        """From now on these. Backends that stay keep their count of open requests."""
        addresses = {address for route in routes for address in route.addresses}
        self._backends = {address: self._backends.get(address) or Backend(address) for address in sorted(addresses)}
        self._routes = {name: route for route in routes for name in route.names}

    def knows(self, model: str) -> bool:
        return model in self._routes

    def pick(self, model: str) -> Backend | None:
        """The least loaded backend of a known model; the first by address among equals."""
        candidates = [self._backends[address] for address in self._routes[model].addresses]
        return min(candidates, key=lambda backend: (backend.open, backend.address), default=None)
