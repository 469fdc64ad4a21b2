"""Which bytes of an unfinished download are certain, a line for each stretch that was written.

A killed process loses nothing that the kernel had taken, so no line waits for the disk: the file of a line was
written before it. A machine that stops may lose both, or one without the other: the id of its boot stands in the first
line, and after another boot only files with a checksum are gone on with.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from quire_engine.fetch.ranges import Ranges

__all__ = ["Journal", "Known"]

NAME = "journal"


@dataclass(slots=True)
class Known:
    """What is on disk of one file."""

    version: str  # what the source said of it: another version is another file
    ranges: Ranges = field(default_factory=Ranges)
    pin: tuple[str, str] | None = None  # where it came from, and its ETag there


class Journal:
    """One writer; threads may share it."""

    def __init__(self, folder: Path, boot: str) -> None:
        """`folder` is for our marks, within the unfinished download's."""
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / NAME
        self.known, self.same_boot = _read(self._path, boot)
        fresh = self._path.with_suffix(".new")
        self._fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self._write("boot", boot)
        for path, known in self.known.items():
            self.begin(path, known.version)
            if known.pin is not None:
                self.pinned(path, *known.pin)
            for start, end in known.ranges:
                self.has(path, start, end)
        fresh.rename(self._path)

    def begin(self, path: str, version: str) -> None:
        """Of this file nothing is certain from here on."""
        self._write("file", path, version)

    def pinned(self, path: str, origin: str, etag: str) -> None:
        self._write("pin", path, origin, etag)

    def has(self, path: str, start: int, end: int) -> None:
        self._write("has", path, start, end)

    def close(self) -> None:
        os.close(self._fd)

    def _write(self, *line: object) -> None:
        os.write(self._fd, json.dumps(line, separators=(",", ":")).encode() + b"\n")  # O_APPEND: whole lines


def _read(path: Path, boot: str) -> tuple[dict[str, Known], bool]:
    known: dict[str, Known] = {}
    same_boot = False
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return known, False
    for line in lines[:-1]:  # the last one may be torn
        try:
            kind, *rest = json.loads(line)
            if kind == "boot":
                same_boot = rest == [boot]
            elif kind == "file":
                known[rest[0]] = Known(rest[1])
            elif kind == "pin":
                known[rest[0]].pin = (rest[1], rest[2])
            elif kind == "has":
                known[rest[0]].ranges.add(int(rest[1]), int(rest[2]))
        except (ValueError, KeyError, IndexError, TypeError):
            return {}, False  # damaged: begin again
    return known, same_boot
