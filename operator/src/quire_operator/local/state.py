"""The state folder of local mode: who owns it, which processes run for it, where logs and the control socket are.

    owner.json       locked by the `quire up` that runs, and who it is
    control.sock     what the other commands speak to
    processes.json   engines, by pid and start time: what is left of them after a kill -9 is ended by the next owner
    logs/            one for each engine, and those before it

A process is ended here only if it is provably ours: the same boot, the same start time or our mark in its environment.
"""

import contextlib
import fcntl
import json
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["MARK", "FolderTaken", "Owner", "StateFolder", "default_folder", "process_start"]

MARK = "QUIRE_ENGINE_OF"  # environment of every engine: the state folder it runs for


class FolderTaken(Exception):
    def __init__(self, folder: Path, pid: int) -> None:
        super().__init__(
            f"another quire up (pid {pid}) owns {folder}: end it with `quire down`, or give this one another folder with --state"
        )
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Owner:
    """The `quire up` that has the folder."""

    pid: int
    started: int
    url: str

    @property
    def alive(self) -> bool:
        return process_start(self.pid) == self.started


def default_folder() -> Path:
    """$QUIRE_STATE, else where the user's programs keep their state."""
    if given := os.environ.get("QUIRE_STATE"):
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser().absolute() / "quire"


class StateFolder:
    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.logs = self.path / "logs"
        self.control = self.path / "control.sock"
        self.up_log = self.path / "up.log"
        self._owner = self.path / "owner.json"
        self._processes = self.path / "processes.json"
        self._running: dict[str, int] = {}
        self._lock: int | None = None
        self._sockets: Path | None = None

    # for the owner

    def take(self) -> list[str]:
        """Own the folder from now on, and end what a killed owner left; its engines' names. FolderTaken, OSError."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._owner, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            owner = self.owner()
            raise FolderTaken(self.path, owner.pid if owner else 0) from None
        self._lock = lock
        self.claim("")
        left = self._end_orphans()
        self.logs.mkdir(exist_ok=True, mode=0o700)
        for old in self.logs.iterdir():
            old.unlink()
        self.control.unlink(missing_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="quire-"))  # short: a socket's path may have 107 bytes
        self._record()
        return left

    def claim(self, url: str) -> None:
        """Say who owns the folder, and where the endpoint is."""
        assert self._lock is not None
        pid = os.getpid()
        words = json.dumps({"pid": pid, "started": process_start(pid), "url": url}).encode()
        os.pwrite(self._lock, words, 0)
        os.ftruncate(self._lock, len(words))

    @property
    def sockets(self) -> Path:
        assert self._sockets is not None
        return self._sockets

    def release(self) -> None:
        """Leave the folder to others; the logs stay."""
        self.control.unlink(missing_ok=True)
        self._processes.unlink(missing_ok=True)
        if self._sockets is not None:
            _remove(self._sockets)
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def started(self, name: str, pid: int) -> None:
        self._running[name] = pid
        self._record()

    def ended(self, name: str) -> None:
        self._running.pop(name, None)
        self._record()

    def _record(self) -> None:
        engines = [
            {"name": name, "pid": pid, "started": process_start(pid)} for name, pid in sorted(self._running.items())
        ]
        words = json.dumps({"boot": _boot(), "sockets": str(self._sockets), "engines": engines})
        fresh = self._processes.with_suffix(".new")
        fresh.write_text(words)
        fresh.replace(self._processes)

    def _end_orphans(self) -> list[str]:
        record = _read(self._processes)
        if not record or record.get("boot") != _boot():
            return []
        ended = []
        for engine in record.get("engines", ()):
            ours = [pid for pid in _session(engine["pid"]) if self._is_ours(pid, engine)]
            for pid in ours:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 5
            while any(map(_runs, ours)) and time.monotonic() < deadline:
                time.sleep(0.02)
            ended += [engine["name"]] if ours else []
        sockets = Path(record.get("sockets", ""))
        if sockets.name.startswith("quire-") and sockets.is_dir() and sockets.stat().st_uid == os.getuid():
            _remove(sockets)
        return ended

    def _is_ours(self, pid: int, engine: Mapping[str, Any]) -> bool:
        if not _runs(pid):
            return False
        if pid == engine["pid"] and process_start(pid) == engine["started"]:
            return True
        try:  # its children may be alive without it
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        return f"{MARK}={self.path}".encode() in environment

    # for everybody

    def owner(self) -> Owner | None:
        """Who has the folder now."""
        words = _read(self._owner)
        if not words:
            return None
        owner = Owner(words["pid"], words["started"], words["url"])
        return owner if owner.alive else None


def process_start(pid: int) -> int:
    """When a process started, in ticks since boot; 0 when there is none. With its pid it names a process for good."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _session(leader: int) -> Iterator[int]:
    """The processes of a session; every engine leads one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getsid(int(entry.name)) == leader:
                    yield int(entry.name)


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        words = json.loads(path.read_text())
    except (OSError, ValueError):  # no file, or one that is being written
        return None
    return words if isinstance(words, dict) else None


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            file.unlink(missing_ok=True)
        folder.rmdir()
