"""The machine a benchmark runs on: what its JSON says of it, how busy others keep it, what a family of processes takes.

Standard library only.
"""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str | int]:
    return {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


class Others:
    """The share of all cores that processes outside of one's family have used since this object was made."""

    def __init__(self, root: int | None = None) -> None:
        """Of all processes where no root is given."""
        self._root = root
        self._started, self._busy_s, self._family_s = time.monotonic(), _busy_s(), self._own_s()

    def share(self) -> float:
        elapsed = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        used = _busy_s() - self._busy_s - (self._own_s() - self._family_s)
        return max(0.0, used / elapsed)

    def _own_s(self) -> float:
        return 0.0 if self._root is None else cpu_s(family(self._root))


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    ticks: int  # of processor time, its dead children's among them
    born: int  # in ticks since boot: with the pid, one process for good

    @property
    def alive(self) -> bool:
        found = _process(self.pid)
        return found is not None and found.born == self.born


def family(root: int) -> list[Process]:
    """A process and its descendants, parents first, in whatever session they are."""
    children: dict[int, list[Process]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if found := _process(int(folder.name)):
            children.setdefault(found.parent, []).append(found)
    first = _process(root)
    found_all = [first] if first else []
    for member in found_all:  # grows meanwhile
        found_all += children.get(member.pid, [])
    return found_all


def cpu_s(members: Iterable[Process]) -> float:
    return sum(member.ticks for member in members) * TICK_S


def memory_mib(members: Iterable[Process]) -> float:
    """What they keep in memory; a page that several processes share counts once, by its parts."""
    kib = 0
    for member in members:
        try:
            lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 1024


def _process(pid: int) -> Process | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # from the third on: state, parent
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(pid, int(fields[1]), sum(int(field) for field in fields[11:15]), int(fields[19]))


def _busy_s() -> float:
    """Of all cores since boot; what a hypervisor took away counts as busy."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) * TICK_S
