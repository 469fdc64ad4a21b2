"""What routers hold and have at engines, for the autoscaler: the one in this process, those of a cluster, or none.

Those of a cluster are asked twice a second, all that a headless Service names, each by itself: one that is silent delays
nobody's wake. When a resource is held for that was not before, the autoscaler looks at once.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from quire_operator.asking import ask
from quire_operator.reconcile import ResourceKey
from quire_operator.scrape import Demanded
from quire_router import Demand

__all__ = ["InProcess", "NoRouter", "Routers", "addresses_of"]

EVERY_S = 0.5
TIMEOUT_S = 1.0
KNOWN_FOR_S = 3.0  # an answer that is missed once is no router that is gone


class NoRouter:
    """Requests go to the engines' Service, which holds nothing."""

    holds = False

    def demand(self, key: ResourceKey) -> Demanded:
        return Demanded(held=0, in_flight=0)


class InProcess:
    """`demand` is the router's."""

    holds = True

    def __init__(self, demand: Callable[[], Mapping[str, Demand]]) -> None:
        self._demand = demand

    def demand(self, key: ResourceKey) -> Demanded:
        mine = [each for each in self._demand().values() if each.resource == _name(key)]
        return Demanded(held=sum(each.held for each in mine), in_flight=sum(each.in_flight for each in mine))


class Routers:
    """`addresses` are theirs now."""

    def __init__(
        self,
        addresses: Callable[[], Awaitable[Iterable[str]]],
        look_now: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._look_now = look_now
        self._clock = clock
        self._said: dict[str, tuple[float, dict[str, Demanded]]] = {}  # address -> when, and by resource

    @property
    def holds(self) -> bool | None:
        """None: no router answers, which may be the network's fault."""
        return True if self._fresh() else None

    def demand(self, key: ResourceKey) -> Demanded:
        mine = [said[_name(key)] for said in self._fresh() if _name(key) in said]
        return Demanded(held=sum(each.held for each in mine), in_flight=sum(each.in_flight for each in mine))

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Once, at all of them."""
        await asyncio.gather(*(self._ask(address) for address in await self._addresses()))
        self._said = {a: said for a, said in self._said.items() if self._clock() - said[0] < KNOWN_FOR_S}

    async def _ask(self, address: str) -> None:
        told = _read(await ask(address, "/demand", TIMEOUT_S))
        if told is None:
            return
        before = self._said[address][1] if address in self._said else {}
        self._said[address] = (self._clock(), told)
        if any(demanded.held and not (name in before and before[name].held) for name, demanded in told.items()):
            self._look_now()

    def _fresh(self) -> list[dict[str, Demanded]]:
        return [told for at, told in self._said.values() if self._clock() - at < KNOWN_FOR_S]


async def addresses_of(service: str) -> list[str]:
    """All that the host of host:port stands for; none when there is no such name, or nobody to ask for it."""
    host, _, port = service.rpartition(":")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return []
    hosts = {str(address[0]) for *_, address in found}
    return sorted(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts)


def _name(key: ResourceKey) -> str:
    return f"{key.namespace}/{key.name}"


def _read(answer: Any) -> dict[str, Demanded] | None:
    """What /demand said; None when it is not what we asked for."""
    try:
        return {
            str(name): Demanded(held=int(said["held"]), in_flight=int(said["inFlight"]))
            for name, said in answer["demand"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
