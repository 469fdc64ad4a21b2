"""The composition root: EngineConfig -> a loaded engine. The only place that reads the config.

Everything below takes parts, not options; to see what an option does, look for it here.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from quire_api.engine import EngineConfig
from quire_engine.core.blocks import BlockPool
from quire_engine.core.request import Request, RequestId, SamplingParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.engine import Engine
from quire_engine.errors import ConfigFailure, DeviceFailure, MemoryFailure
from quire_engine.locate import locate_model
from quire_engine.models import ARCHITECTURES
from quire_engine.models.weights import Weights
from quire_engine.ops.reference import reference_ops
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.runtime.runner import ModelRunner
from quire_engine.runtime.sizing import Sizes, plan_sizes
from quire_engine.spec import ModelSpec, read_spec
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["BuiltEngine", "build_engine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    engine: Engine
    sizes: Sizes
    dtype: str
    device: torch.device

    def warm_up(self) -> None:
        """One real request through all of it: what is ready has computed a token."""
        params = SamplingParams(max_tokens=2, temperature=0.0)
        self.engine.add(Request(id=RequestId(-1), prompt=(0,), params=params))
        while self.engine.has_work:
            self.engine.step()


def build_engine(config: EngineConfig, depth: int | None = None) -> BuiltEngine:
    """Load the model; EngineFailure says in a sentence what is wrong.

    `depth` is how many steps may be under way. None takes what suits the device: a GPU computes a step while the
    host plans the next; a CPU computes while it is asked to, so there is nothing to run ahead of.
    """
    folder = locate_model(config.model)
    spec = read_spec(folder)
    if spec.architecture not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ConfigFailure(f"architecture {spec.architecture} is not supported yet, only {known}")
    device = _device(config.device)
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    _check_memory(spec, dtype, device)
    try:
        return _load(config, folder, spec, dtype, device, depth)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MemoryFailure(f"out of memory while loading: {str(error).splitlines()[0]}") from None


def _load(
    config: EngineConfig, folder: Path, spec: ModelSpec, dtype: str, device: torch.device, depth: int | None
) -> BuiltEngine:
    torch_dtype: torch.dtype = getattr(torch, dtype)
    ops = reference_ops()
    with Weights(folder, torch_dtype, device) as weights:
        model = ARCHITECTURES[spec.architecture](spec, weights, ops, device)
    sizes = plan_sizes(
        spec.shape,
        dtype,
        trained_len=spec.trained_len,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        kv_cache_gib=config.kv_cache_gib,
        free_bytes=_free_bytes(device),
    )
    cache = KVCache(spec.shape, sizes.num_blocks, sizes.block_size, torch_dtype, device)
    scheduler = Scheduler(
        BlockPool(sizes.num_blocks, sizes.block_size),
        Limits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=sizes.max_model_len,
        ),
        Tokenizer(folder, spec.shape.vocabulary).token_bytes,
    )
    runner = ModelRunner(model, ops, cache, config.max_num_seqs, device)
    engine = Engine(scheduler, runner, depth or (2 if device.type == "cuda" else 1))
    return BuiltEngine(engine=engine, sizes=sizes, dtype=dtype, device=device)


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceFailure("--device cuda, but torch sees no GPU here: use --device cpu, or run where a GPU is")
    return torch.device(wanted)


def _check_memory(spec: ModelSpec, dtype: str, device: torch.device) -> None:
    need, free = spec.shape.weight_bytes(dtype), _free_bytes(device)
    if need > free:
        raise MemoryFailure(f"the weights need {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device}")


def _free_bytes(device: torch.device) -> int:
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
