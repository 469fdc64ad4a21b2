"""Reads a file again whenever it, or one that belongs to it, has changed. A bad file changes nothing, and is said so until it is mended.

By looking, once a second: a mounted secret changes by a renamed link, which watchers of files do not see.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quire_api.errors import InvalidInput

__all__ = ["Watched"]

EVERY_S = 1.0

log = logging.getLogger("quire.router")


@dataclass(slots=True)
class Watched:
    path: Path
    take: Callable[[Path], None]  # reads it; raises InvalidInput and then has changed nothing
    failed: Callable[[], None] = lambda: None  # called when a change could not be taken
    also: tuple[Path, ...] = ()  # what belongs to it, as a key to its certificate
    error: str | None = None
    _seen: object = None

    def load(self) -> None:
        """For the first time, when a mistake is the caller's to tell."""
        self._seen = self._states()
        self.take(self.path)

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            self.look()

    def look(self) -> None:
        seen = self._states()
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self.take(self.path)
        except InvalidInput as error:
            self.error = str(error)
            self.failed()
            log.error("%s; what was read before stays", "; ".join(error.problems))
        else:
            self.error = None
            log.info("%s: read again", self.path)

    def _states(self) -> list[object]:
        return [_state(path) for path in (self.path, *self.also)]


def _state(path: Path) -> object:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
