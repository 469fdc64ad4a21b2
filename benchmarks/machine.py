"""The machine a benchmark runs on: what its JSON says of it, and how busy others keep it. Standard library only."""

import os
import platform
import time
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str | int]:
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


class Others:
    """The share of all cores that processes outside of one group have used since this object was made."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._started, self._busy_s, self._group_s = time.monotonic(), _busy_s(), _group_s(group)

    def share(self) -> float:
        elapsed = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        used = _busy_s() - self._busy_s - (_group_s(self._group) - self._group_s)
        return max(0.0, used / elapsed)


def _busy_s() -> float:
    """Of all cores since boot; what a hypervisor took away counts as busy."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) * TICK_S


def _group_s(group: int) -> float:
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # from the third field on: state, parent, group
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group:
            total += sum(int(field) for field in fields[11:15])  # its own and its dead children's
    return total * TICK_S
