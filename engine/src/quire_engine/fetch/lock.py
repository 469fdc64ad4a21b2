"""One writer for each model's folder, on file systems where flock lies.

    .lock-NAME.1, .lock-NAME.2, ...   the highest number is the lock

To take the lock is to create the next number, which O_EXCL lets only one do, on NFS as well. It may be taken when the
highest one is released, its process is known to have ended, or its content did not change for PATIENCE_S on the
watcher's own clock: no two machines' clocks are compared. No highest file is ever removed, so numbers never repeat,
and an owner that was only asleep finds a higher number when it wakes. It must then write no more.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quire_engine.fetch.machine import Process, myself

__all__ = ["BEAT_S", "PATIENCE_S", "Holder", "Lock", "Watch"]

BEAT_S = 2.0
PATIENCE_S = 20.0
LENGTH = 512  # of the content: a beat overwrites the one before it


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What the lock says of who has it."""

    process: Process
    released: bool
    done: int  # bytes
    total: int

    @property
    def words(self) -> str:
        return f"process {self.process.pid} on {self.process.host}"


class Lock:
    """A lock that is held, beating until it is released."""

    def __init__(
        self, path: Path, progress: Callable[[], tuple[int, int]], lost: Callable[[], None], beat_s: float = BEAT_S
    ) -> None:
        """FileExistsError if somebody was quicker. `lost` is called if it was taken over."""
        self.number = int(path.name.rpartition(".")[2])
        self._path = path
        self._progress = progress
        self._lost = lost
        self._me: dict[str, Any] = {"owner": uuid.uuid4().hex, "process": asdict(myself())}
        self._beats = 0
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        if not self.held:  # we were slow: this number had its time, and its file was removed
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise FileExistsError(path)
        self._beat()
        _remove_older(path)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(beat_s,), name="quire-lock", daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        return _highest(self._path)[0] == self.number

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        try:
            self._beat(released=True)
            os.close(self._fd)
        except OSError:
            pass  # the file system is gone; others find out by the missing beat

    def _keep(self, beat_s: float) -> None:
        while not self._end.wait(beat_s):
            try:
                if not self.held:
                    self._lost()
                    return
                self._beat()
            except OSError:
                pass  # a file system that hiccups: the next beat may pass, and if none does others take over

    def _beat(self, *, released: bool = False) -> None:
        self._beats += 1
        done, total = self._progress()
        text = json.dumps({**self._me, "beat": self._beats, "released": released, "done": done, "total": total})
        os.pwrite(self._fd, text.encode().ljust(LENGTH), 0)
        os.fsync(self._fd)


class Watch:
    """Somebody else's lock, seen over time."""

    def __init__(self, base: Path, clock: Callable[[], float] = time.monotonic, patience_s: float = PATIENCE_S) -> None:
        """`base` is the lock's path without its number."""
        self._base = base
        self._clock = clock
        self._patience_s = patience_s
        self._seen: tuple[int, bytes] | None = None
        self._since = 0.0

    def next(self) -> tuple[Path | None, Holder | None]:
        """The path to create for taking the lock, if it may be taken now; who has it, if somebody has."""
        number, content = _highest(self._base.with_name(f"{self._base.name}.0"))
        following = self._base.with_name(f"{self._base.name}.{number + 1}")
        if number == 0:
            return following, None
        if (number, content) != self._seen:
            self._seen, self._since = (number, content), self._clock()
        holder = _parse(content)
        if holder is not None and (holder.released or holder.process.is_gone):
            return following, None
        if self._clock() - self._since >= self._patience_s:
            return following, None
        return None, holder


def _highest(path: Path) -> tuple[int, bytes]:
    """Of all the numbers of this lock, and what it says; 0 if there is none."""
    base = path.name.rpartition(".")[0] + "."
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return 0, b""
    numbers = [name.removeprefix(base) for name in names if name.startswith(base)]
    number = max((int(n) for n in numbers if n.isdecimal()), default=0)
    if number == 0:
        return 0, b""
    try:
        return number, path.with_name(f"{base}{number}").read_bytes()
    except FileNotFoundError:  # the next one took its place meanwhile
        return number, b""


def _remove_older(path: Path) -> None:
    base, _, number = path.name.rpartition(".")
    for name in os.listdir(path.parent):
        other = name.removeprefix(base + ".")
        if other != name and other.isdecimal() and int(other) < int(number):
            path.with_name(name).unlink(missing_ok=True)


def _parse(content: bytes) -> Holder | None:
    try:
        told = json.loads(content)
        return Holder(
            process=Process(**told["process"]), released=told["released"], done=told["done"], total=told["total"]
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        return None  # between its creation and its first beat, or half of one
