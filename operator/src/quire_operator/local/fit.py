"""Do the models fit this machine, all engines together? From the checkpoints' config.json, before anything is started.

What one engine needs says `planner/fit.py`. GPUs have memory of their own, which the engine looks at.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quire_api.deployment import LLMDeployment
from quire_api.footprint import Footprint
from quire_operator.planner.fit import GIB, need_of

__all__ = ["available_bytes", "misfits"]


def misfits(deployments: Iterable[LLMDeployment], available: int) -> list[str]:
    """A sentence for each resource with which the memory is exceeded."""
    problems, used = [], 0
    for deployment in deployments:
        if deployment.spec.accelerator.profile != "cpu" or not deployment.spec.replicas:
            continue
        config = _config(deployment.spec.model.source.uri)
        footprint = Footprint.from_config(config) if config else None
        one = need_of(deployment.spec.engine, footprint, deployment.spec.parallelism.devices)
        weights, cache, replicas = one.weights, one.cache + one.swap, deployment.spec.replicas
        need = replicas * (weights + cache)
        if used + need > available:
            what = f"{replicas} engine{'s' if replicas > 1 else ''} with {weights / GIB:.2f} GiB of weights"
            cached = f" and {cache / GIB:.2f} GiB of KV cache" if cache else ""
            others = f", besides {used / GIB:.2f} GiB for the others" if used else ""
            problems.append(
                f"{deployment.metadata.name}: {what}{cached} need{'' if replicas > 1 else 's'} {need / GIB:.2f} GiB{others}; {available / GIB:.2f} GiB of memory "
                "are free: lower spec.replicas or kvCacheGiB, or take a smaller model"
            )
        used += need
    return problems


def available_bytes(meminfo: Path = Path("/proc/meminfo"), limit: Path = Path("/sys/fs/cgroup")) -> int:
    """What may still be allocated, below the container's limit where there is one."""
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next((int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), 1 << 62)
    try:
        most = (limit / "memory.max").read_text().strip()
        used = int((limit / "memory.current").read_text())
        cached = next(
            int(line.split()[1])
            for line in (limit / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
    except (OSError, StopIteration):
        return free
    return free if most == "max" else min(free, int(most) - used + cached)


def _config(uri: str) -> dict[str, Any] | None:
    if not uri.startswith("file://"):
        return None
    try:
        config = json.loads((Path(uri.removeprefix("file://")) / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
