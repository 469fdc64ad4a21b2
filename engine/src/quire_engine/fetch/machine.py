"""Who this process is, so that others on the same machine can tell at once whether it still runs.

Only processes that share the boot and the process namespace can; for all others only a heartbeat tells.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process", "boot_id", "myself"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    host: str
    pid: int
    space: str  # boot and process namespace
    started: str  # in ticks since the boot: a pid is used again

    @property
    def is_gone(self) -> bool:
        """Known to have ended. False where that cannot be seen from here."""
        return bool(self.space) and self.space == _space() and _started(self.pid) != self.started


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def myself() -> Process:
    pid = os.getpid()
    return Process(host=socket.gethostname(), pid=pid, space=_space(), started=_started(pid))


def _space() -> str:
    try:
        return f"{boot_id()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """Empty if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
