"""How far a fetch is, and how that is told: a bar on a terminal, JSON lines elsewhere, a status file, a port."""

import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from quire_api.fetching import FetchStatus

__all__ = ["Meter", "Teller", "human", "replace"]

WINDOW_S = 10.0  # over which the rate is taken


class Meter:
    """What the threads count. Bytes that were there before count as done, but not towards the rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase, self._message = "resolving", ""
        self._done = self._total = self._arrived = 0
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def phase(self, phase: str, message: str = "") -> None:
        with self._lock:
            self._phase, self._message = phase, message

    def expect(self, total: int, present: int) -> None:
        with self._lock:
            self._total, self._done = total, present

    def add(self, count: int, *, arrived: bool = True) -> None:
        """Negative when bytes turned out to be wrong."""
        with self._lock:
            self._done += count
            self._arrived += count if arrived else 0

    @property
    def counts(self) -> tuple[int, int]:
        return self._done, self._total

    @property
    def arrived(self) -> int:
        return self._arrived

    def status(self) -> FetchStatus:
        now = self._clock()
        with self._lock:
            while len(self._marks) > 1 and now - self._marks[1][0] > WINDOW_S:
                self._marks.popleft()
            if now - self._marks[-1][0] >= 0.1:
                self._marks.append((now, self._arrived))
            since, before = self._marks[0]
            rate = max(0.0, (self._arrived - before) / max(now - since, 0.1))
            left = self._total - self._done
            done_share = 100.0 * self._done / self._total if self._total else 0.0
            return FetchStatus(
                phase=self._phase,
                percent=100.0 if self._phase == "ready" else round(min(done_share, 99.9), 1),
                bytes=self._done,
                totalBytes=self._total,
                bytesPerSecond=int(rate),
                etaSeconds=int(left / rate) + 1 if rate > 0 and left > 0 else None,
                message=self._message,
            )


class Teller:
    """Tells it until the context is left, and then once more."""

    def __init__(
        self,
        meter: Meter,
        *,
        out: TextIO | None = None,
        quiet: bool = False,
        file: Path | None = None,
        every_s: float = 1.0,
    ) -> None:
        """`every_s` is for lines; a bar moves faster."""
        self._meter = meter
        self._out = out or sys.stderr  # None where a process was started without
        self._quiet = quiet or self._out is None
        self._bar = not self._quiet and self._out.isatty()
        self._file = file
        self._every_s = every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="quire-progress", daemon=True)
        self._last = ""

    def __enter__(self) -> "Teller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._tell()
        if self._bar:
            self._write("\n")

    def _run(self) -> None:
        while not self._end.wait(0.2 if self._bar else self._every_s):
            self._tell()

    def _tell(self) -> None:
        status = self._meter.status()
        line = json.dumps(status)
        if self._file is not None and line != self._last:
            with suppress(OSError):  # the status is for others; the fetch goes on without
                replace(self._file, line + "\n")
        if self._bar:
            self._write("\r" + _bar(status) + "\x1b[K")
        elif not self._quiet and line != self._last:
            self._write(line + "\n")
        self._last = line

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            pass  # nobody reads any more; the fetch goes on


def human(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def _bar(status: FetchStatus) -> str:
    if status["phase"] in ("resolving", "ready", "failed") or not status["totalBytes"]:
        return f"{status['phase']} {status['message']}"[:110]
    full = int(status["percent"] / 5)
    seconds = status["etaSeconds"]
    eta = "" if seconds is None else f", {seconds // 60}:{seconds % 60:02d} left"
    return (
        f"{status['phase']} [{'#' * full}{'.' * (20 - full)}] {status['percent']:.1f} % of {human(status['totalBytes'])}, "
        f"{human(status['bytesPerSecond'])}/s{eta} {status['message']}"
    )[:140]


def replace(path: Path, text: str) -> None:
    """At once, for who reads it meanwhile."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)
