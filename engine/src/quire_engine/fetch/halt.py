"""One reason to stop, seen by every thread. The first one counts."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from quire_engine.fetch.errors import FetchFailure

__all__ = ["Halt"]


class Halt:
    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._why: FetchFailure | None = None
        self.may_cut = False

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """For a wait on a server that looks at nothing else: the signal's handler raises KeyboardInterrupt into it."""
        self.may_cut = True
        try:
            yield
        except KeyboardInterrupt:
            self.check()
            raise
        finally:
            self.may_cut = False

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
