"""The queue between events and reconciles.

A key that is woken many times is reconciled once; several keys may have their turns at the same time, one key never has two; a
failure is tried again later and later, with jitter. `last_turn` tells the liveness probe that the queue turns.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable

from quire_operator.reconcile import ResourceKey

__all__ = ["Worker"]

log = logging.getLogger("quire.worker")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 300.0
RESYNC_S = 600.0


class Worker:
    def __init__(
        self,
        reconcile: Callable[[ResourceKey], Awaitable[float | None]],
        limit_s: float | None = None,
        waited: Callable[[float], None] = lambda seconds: None,
        at_once: int = 1,
    ) -> None:
        """`limit_s` ends a turn that takes longer, as a failure, so that one resource cannot hold up the others.
        `waited` is told how late each turn begins; `at_once` is how many there may be."""
        self._reconcile = reconcile
        self._limit_s = limit_s
        self._waited = waited
        self._at_once = at_once
        self._turning: dict[ResourceKey, asyncio.Task[None]] = {}
        self.due: dict[ResourceKey, float] = {}  # when to look at a key, by the loop's clock
        self._failures: dict[ResourceKey, int] = {}
        self._changed = asyncio.Event()
        self.last_turn = time.monotonic()

    def wake(self, key: ResourceKey, after: float = 0.0) -> None:
        """Look at `key` no later than `after` seconds from now."""
        when = time.monotonic() + after
        if when < self.due.get(key, float("inf")):
            self.due[key] = when
            self._changed.set()

    async def run(self) -> None:
        """For ever, in the order in which they are due."""
        try:
            while True:
                self._changed.clear()
                wait = self._begin() if len(self._turning) < self._at_once else 5.0
                try:
                    async with asyncio.timeout(wait):  # wait_for may swallow the end, when both come at once
                        await self._changed.wait()
                except TimeoutError:
                    pass
        finally:
            turning = list(self._turning.values())
            for task in turning:
                task.cancel()
            await asyncio.gather(*turning, return_exceptions=True)

    def _begin(self) -> float:
        """The next turn, if one is due; how long to wait for another."""
        self.last_turn = now = time.monotonic()
        key = min(self.due.keys() - self._turning.keys(), key=lambda k: self.due[k], default=None)
        if key is None:
            return 5.0
        if self.due[key] > now:
            return min(self.due[key] - now, 5.0)
        self._waited(now - self.due.pop(key))
        task = self._turning[key] = asyncio.create_task(self._turn(key))
        task.add_done_callback(lambda _: self._ended(key))
        return 0.0

    def _ended(self, key: ResourceKey) -> None:
        del self._turning[key]
        self._changed.set()

    def late(self) -> list[float]:
        """Seconds since each turn was due that has not begun."""
        now = time.monotonic()
        return [now - when for when in self.due.values() if when <= now]

    async def _turn(self, key: ResourceKey) -> None:
        try:
            async with asyncio.timeout(self._limit_s):
                again = await self._reconcile(key)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # one resource's trouble must not stop the others
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            delay = min(RETRY_FIRST_S * 2 ** min(failures - 1, 20), RETRY_MOST_S) * random.uniform(0.8, 1.2)
            log.warning("%s/%s: %s; again in %.1f s", key.namespace, key.name, error or type(error).__name__, delay)
            self.wake(key, delay)
            return
        self._failures.pop(key, None)
        resync = RESYNC_S * random.uniform(0.8, 1.2)
        self.wake(key, resync if again is None else again if again == math.inf else min(again, resync))
