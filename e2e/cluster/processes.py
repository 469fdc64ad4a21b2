"""Starts the programs of a cluster in its network, and ends them: those which it started, by their pids."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from layout import Layout


def start(layout: Layout, name: str, command: list[str]) -> None:
    """In the background, in the cluster's network, with a log; it outlives this program."""
    logs = layout.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*layout.inside, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    pids = layout.folder / "pids"
    pids.mkdir(exist_ok=True)
    (pids / f"{len(list(pids.iterdir())):02d}-{name}").write_text(f"{process.pid} {_started(process.pid)}")


def stop(layout: Layout, name: str = "*") -> None:
    """One program, or all of them, latest first."""
    pids = layout.folder / "pids"
    for file in sorted(pids.glob(f"*-{name}"), reverse=True):
        pid, _, began = file.read_text().partition(" ")
        _stop(int(pid), began)
        file.unlink()


def wait_until(what: str, ready: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            tail = f":\n{log.read_text(errors='replace')[-3000:]}" if log and log.exists() else ""
            raise SystemExit(f"{what} is not ready after {seconds:.0f} s{tail}")
        time.sleep(0.2)


def _stop(pid: int, began: str) -> None:
    """SIGTERM, then SIGKILL; nothing if the pid belongs to another process by now."""
    for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
        if _started(pid) != began:
            return
        os.kill(pid, number)
        deadline = time.monotonic() + patience
        while _started(pid) == began and time.monotonic() < deadline:
            _reap(pid)
            time.sleep(0.05)


def _started(pid: int) -> str:
    """The start time of a process in clock ticks, which tells it from a later one with the same number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
