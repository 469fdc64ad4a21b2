"""Logs of engines: bounded on disk, the last words in memory; and how to read them while they grow. Knows no process."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["KEPT", "MOST_BYTES", "RotatingLog", "follow", "last_lines"]

MOST_BYTES = 10 << 20
KEPT = 3  # files in all: the one that is written, .1 and .2
TAIL = 4096


class RotatingLog:
    """NAME.log, and NAME.log.1 before it."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self._most = most_bytes
        self._file = path.open("ab")
        self._tail = b""

    def write(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-TAIL:]
        if self._file.tell() and self._file.tell() + len(data) > self._most:
            self._rotate()
        self._file.write(data)
        self._file.flush()

    def begin(self) -> None:
        """A new process writes from here on: forget the last words."""
        self._tail = b""

    @property
    def last_line(self) -> str:
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        for age in range(KEPT - 1, 0, -1):
            older = self._aged(age - 1)
            if older.exists():
                older.replace(self._aged(age))
        self._file = self.path.open("ab")

    def _aged(self, age: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{age}") if age else self.path


def last_lines(path: Path, count: int) -> bytes:
    """The last lines of a log, those of the file before it included if it takes them."""
    text = b""
    for file in (path, *(path.with_name(f"{path.name}.{age}") for age in range(1, KEPT))):
        if not file.exists():
            break
        text = file.read_bytes() + text
        if text.count(b"\n") >= count:
            break
    return b"".join(text.splitlines(keepends=True)[-count:])


def follow(path: Path, goes_on: Callable[[], bool], pause_s: float = 0.1) -> Iterator[bytes]:
    """What is written from now on, over rotations, while `goes_on`."""
    file = path.open("rb")
    try:
        file.seek(0, os.SEEK_END)
        while True:
            if data := file.read(1 << 16):
                yield data
                continue
            if path.exists() and os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                yield file.read()
                file.close()
                file = path.open("rb")
                continue
            if not goes_on():
                return
            time.sleep(pause_s)
    finally:
        file.close()
