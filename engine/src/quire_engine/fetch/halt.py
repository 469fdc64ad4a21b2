"""One reason to stop, seen by every thread. The first one counts."""

import threading

from quire_engine.fetch.errors import FetchFailure

__all__ = ["Halt"]


class Halt:
    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._why: FetchFailure | None = None

    def stop(self, why: FetchFailure) -> None:
        """May be called by a signal's handler, hence no waiting for the lock."""
        if self._lock.acquire(blocking=False):
            self._why = self._why or why
            self._lock.release()
        self._event.set()

    @property
    def stopped(self) -> bool:
        return self._event.is_set()

    @property
    def why(self) -> FetchFailure | None:
        return self._why

    def check(self) -> None:
        """Raise why, if it is time to stop."""
        if self._event.is_set() and self._why is not None:
            raise self._why

    def wait(self, seconds: float) -> None:
        """Sleep; raise as soon as it is time to stop."""
        self._event.wait(seconds)
        self.check()
