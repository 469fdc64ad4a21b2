"""What this machine has for a rank: a device, and free memory on it."""

import math
from pathlib import Path

import torch

from quire_engine.errors import DeviceFailure

__all__ = ["device_of", "free_bytes"]


def device_of(wanted: str, ranks: int, rank: int) -> torch.device:
    """That of a rank, of so many on this machine; `wanted` is what --device says."""
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise DeviceFailure("--device cuda, but torch sees no GPU here: use --device cpu, or run where a GPU is")
    if ranks == 1:
        return torch.device("cuda")
    if ranks > (count := torch.cuda.device_count()):
        raise DeviceFailure(
            f"--tensor-parallel-size times --pipeline-parallel-size, over --nnodes, is {ranks} GPUs, and torch sees {count} here: lower one"
        )
    torch.cuda.set_device(rank)
    return torch.device("cuda", rank)


def free_bytes(device: torch.device) -> int:
    """What this process may still allocate on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = math.inf
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    return int(min(available, _cgroup_free()))


def _cgroup_free() -> float:
    """Room below the container's memory limit, where there is one (cgroup v2, then v1). Cached files make way."""
    base = Path("/sys/fs/cgroup")
    versions = (
        (base, "memory.max", "memory.current", "inactive_file"),
        (base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder, limit, used, cached in versions:
        try:
            numbers = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return float((folder / limit).read_text()) - float((folder / used).read_text()) + float(numbers[cached])
        except (OSError, ValueError, KeyError):
            continue  # absent, or "max"
    return math.inf
