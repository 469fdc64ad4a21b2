"""Which GPU and how many threads an engine gets. The machine is looked at once; the rest is arithmetic."""

import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

__all__ = ["free_gpus", "gpus", "threads"]


def gpus(environment: str | None = None, devices: Path = Path("/dev")) -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES names, else every GPU there is."""
    if environment is not None:
        return tuple(name.strip() for name in environment.split(",") if name.strip() not in ("", "-1"))
    found = (re.fullmatch(r"nvidia(\d+)", entry.name) for entry in devices.iterdir())
    return tuple(str(number) for number in sorted(int(match[1]) for match in found if match))


def free_gpus(all_of_them: Sequence[str], taken: Collection[str]) -> list[str]:
    return [gpu for gpu in all_of_them if gpu not in taken]


def threads(engines: int) -> int:
    """Of each of so many engines that share the processors."""
    return max(1, len(os.sched_getaffinity(0)) // max(1, engines))
