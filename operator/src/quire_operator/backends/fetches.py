"""Asks the containers that fetch weights how far they are, and wakes the planner at each step.

`quire fetch` answers; whoever does not is asked again. Rule: what is kept changes with the phase and with each
tenth, and not with every byte, so that the status does not tick.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from quire_operator.asking import ask
from quire_operator.planner.observed import Progress
from quire_operator.reconcile import ResourceKey

__all__ = ["Fetches", "Fetching"]

log = logging.getLogger("quire.fetches")

EVERY_S = 5.0
TIMEOUT_S = 2.0
STEP_PERCENT = 10
AT_ONCE = 128  # connections


class Fetching(NamedTuple):
    uid: str  # of the pod
    owner: ResourceKey
    address: str  # host:port


class Fetches:
    def __init__(self, fetching: Callable[[], Iterable[Fetching]], wake: Callable[[ResourceKey], None]) -> None:
        self._fetching = fetching
        self._wake = wake
        self._said: dict[str, Progress] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def of(self, uid: str) -> Progress | None:
        """None while it has not said anything."""
        return self._said.get(uid)

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self.look()
            except Exception:  # what one look stumbles over must not end all
                log.exception("cannot ask how far weights are")
            await asyncio.sleep(EVERY_S)

    async def look(self) -> None:
        """Once, at all of them; who fetches no more is forgotten."""
        now = list(self._fetching())
        self._said = {each.uid: self._said[each.uid] for each in now if each.uid in self._said}
        await asyncio.gather(*(self._ask(each) for each in now))

    async def _ask(self, pod: Fetching) -> None:
        async with self._room:
            told = _read(await ask(pod.address, "/", TIMEOUT_S))
        before = self._said.get(pod.uid)
        if told is None or (before is not None and (before.phase, before.percent) == (told.phase, told.percent)):
            return
        self._said[pod.uid] = told
        self._wake(pod.owner)


def _read(answer: Any) -> Progress | None:
    """A `FetchStatus`; None when it is none."""
    try:
        percent = int(answer["percent"]) // STEP_PERCENT * STEP_PERCENT
        return Progress(
            phase=str(answer["phase"])[:64],
            percent=min(max(percent, 0), 100),
            bytes_per_second=max(0, int(answer["bytesPerSecond"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
