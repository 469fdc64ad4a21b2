"""The composition root: EngineConfig -> a loaded engine. The only place that reads the config.

Everything below takes parts, not options; to see what an option does, look for it here.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch

from quire_api.engine import EngineConfig
from quire_engine.core.blocks import BlockPool
from quire_engine.core.memory import Memory
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.engine import Engine, Runner
from quire_engine.errors import ConfigFailure, DeviceFailure, MemoryFailure
from quire_engine.grammars.store import GrammarStore
from quire_engine.locate import check_hashes, locate_model
from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat
from quire_engine.models import ENCODERS, GENERATORS, Build, CausalLM
from quire_engine.models.weights import DummyWeights, Weights
from quire_engine.ops import Ops
from quire_engine.ops.cpu import NoLibrary, native_ops
from quire_engine.ops.reference import reference_ops
from quire_engine.quant import scheme_of
from quire_engine.runtime.batch import BatchBuilder
from quire_engine.runtime.embedder import Embedder
from quire_engine.runtime.forecast import Forecaster, operations_of
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.runtime.runner import ModelRunner
from quire_engine.runtime.sizing import Sizes, plan_sizes, swap_cost
from quire_engine.sampling.grammar import GrammarMask
from quire_engine.sampling.sampler import Sampler
from quire_engine.spec import ModelSpec, read_spec
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["BuiltEmbedder", "BuiltEngine", "build_embedder", "build_engine", "build_model"]

COMPILES_ALL = 600  # tokens of the first prompt on a GPU: kernels for prompts, and for contexts in several parts

log = logging.getLogger("quire.engine")

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    engine: Engine
    grammars: GrammarStore
    spec: ModelSpec
    sizes: Sizes
    tokenizer: Tokenizer | None
    dtype: str
    device: torch.device

    @property
    def max_model_len(self) -> int:
        return self.sizes.max_model_len

    def warm_up(self) -> None:
        """One real request through all of it, two steps: what is ready has computed tokens, and knows how long it takes."""
        params = TokenParams(max_tokens=2, min_tokens=2, temperature=0.0)
        length = 1 if self.device.type == "cpu" else max(1, min(COMPILES_ALL, self.max_model_len - 2))
        self.engine.add(Request(id=RequestId(-1), prompt=(0,) * length, params=params))
        while self.engine.has_work:
            self.engine.step()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEmbedder:
    """The same for a model that makes embeddings and no text: it keeps nothing from one prompt to the next."""

    embedder: Embedder
    spec: ModelSpec
    tokenizer: Tokenizer | None
    dtype: str
    device: torch.device

    @property
    def max_model_len(self) -> int:
        return self.embedder.longest

    def warm_up(self) -> None:
        self.embedder.embed([[0]])


def build_engine(
    config: EngineConfig,
    *,
    depth: int | None = None,
    ops: Ops | None = None,
    with_tokenizer: bool = True,
    announce: Callable[[float], None] | None = None,
) -> BuiltEngine:
    """Load the model; EngineFailure says in a sentence what is wrong.

    `depth` is how many steps may be under way. None takes what suits the device: a GPU computes a step while the
    host plans the next; a CPU computes while it is asked to, so there is nothing to run ahead of. `ops` are the
    kernels; None takes the best there are. Without a tokenizer, tokens have no text: only ids go in and out.
    `announce` is told before each step how many seconds it should take.
    """
    loaded = _load(config, GENERATORS, ops, with_tokenizer)
    with _memory_is_named():
        return _assemble(config, loaded, depth, announce)


def build_embedder(config: EngineConfig, *, ops: Ops | None = None, with_tokenizer: bool = True) -> BuiltEmbedder:
    """Load a model for its embeddings: an encoder, or what is below the output head of a generator."""
    loaded = _load(config, {**GENERATORS, **ENCODERS}, ops, with_tokenizer)
    with _memory_is_named():
        embedder = Embedder(
            loaded.model,
            loaded.spec,
            dtype=getattr(torch, loaded.dtype),
            block_size=config.block_size,
            max_tokens=max(config.max_num_batched_tokens, config.max_model_len or loaded.spec.trained_len),
            device=loaded.device,
        )
    return BuiltEmbedder(
        embedder=embedder, spec=loaded.spec, tokenizer=loaded.tokenizer, dtype=loaded.dtype, device=loaded.device
    )


def build_model(
    config: EngineConfig, *, with_tokenizer: bool = True, announce: Callable[[float], None] | None = None
) -> BuiltEngine | BuiltEmbedder:
    """Whichever the checkpoint is for; modules.json is how sentence-transformers marks a model for embeddings."""
    folder = locate_model(config.model)
    if read_spec(folder).architecture in ENCODERS or (folder / "modules.json").exists():
        return build_embedder(config, with_tokenizer=with_tokenizer)
    return build_engine(config, with_tokenizer=with_tokenizer, announce=announce)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded(Generic[Model]):
    model: Model
    spec: ModelSpec
    tokenizer: Tokenizer | None
    dtype: str
    device: torch.device
    ops: Ops


def _load(
    config: EngineConfig, table: Mapping[str, Build[Model]], ops: Ops | None, with_tokenizer: bool
) -> _Loaded[Model]:
    folder = locate_model(config.model)
    if config.verify_weights == "always":
        check_hashes(folder)
    spec = read_spec(folder)
    if spec.architecture not in table:
        hint = "it makes embeddings, no text" if spec.architecture in ENCODERS else f"only {', '.join(sorted(table))}"
        raise ConfigFailure(f"architecture {spec.architecture} is not supported here: {hint}")
    device = _device(config.device)
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    torch_dtype = getattr(torch, dtype)
    scheme = scheme_of(spec.quantization, config.quantization)
    if scheme is not None:
        need = spec.shape.weight_bytes(dtype) / 2**30
        log.info("the weights are dequantised while they are read: %.2f GiB, as much as in plain %s", need, dtype)
    _check_memory(spec, dtype, device)
    with _memory_is_named():
        tokenizer = Tokenizer(folder, spec.shape.vocabulary) if with_tokenizer else None
        ops = ops or _best_ops(device, torch_dtype)
        dummy = config.load_format == "dummy"
        with DummyWeights(torch_dtype, device) if dummy else Weights(folder, torch_dtype, device, scheme) as weights:
            model = table[spec.architecture](spec, weights, ops, device)
    return _Loaded(model=model, spec=spec, tokenizer=tokenizer, dtype=dtype, device=device, ops=ops)


@contextmanager
def _memory_is_named() -> Iterator[None]:
    """torch says in many ways that memory ran out; we say it in one."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MemoryFailure(f"out of memory while loading: {str(error).splitlines()[0]}") from None


def _assemble(
    config: EngineConfig,
    loaded: "_Loaded[CausalLM]",
    depth: int | None,
    announce: Callable[[float], None] | None,
) -> BuiltEngine:
    """Size the KV cache by what is left, and put the parts together."""
    spec, tokenizer, dtype, device = loaded.spec, loaded.tokenizer, loaded.dtype, loaded.device
    sizes = plan_sizes(
        spec.shape,
        dtype,
        trained_len=spec.trained_len,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_gib=config.kv_cache_gib,
        swap_space_gib=config.swap_space_gib,
        free_bytes=_free_bytes(device),
    )
    memory = Memory(
        BlockPool(sizes.num_blocks, sizes.block_size),
        BlockPool(sizes.num_host_blocks, sizes.block_size),
        prefix_caching=config.enable_prefix_caching,
        swap_cost=swap_cost(spec.shape, dtype, device.type),
    )
    limits = Limits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=sizes.max_model_len,
        long_prefill_tokens=config.long_prefill_token_threshold or -(-config.max_num_batched_tokens // 4),
        by_priority=config.scheduling_policy == "priority",
    )
    token_bytes = tokenizer.token_bytes if tokenizer else [b""] * spec.shape.vocabulary
    special_bytes = tokenizer.text_table(skip_special=False) if tokenizer else None
    vocabulary = spec.shape.vocabulary
    grammars = GrammarStore(
        _writable(tokenizer, vocabulary), {token for token in spec.end_tokens if token < vocabulary}
    )
    mask = GrammarMask(grammars, token_bytes, config.max_num_seqs, device)
    runner: Runner = ModelRunner(
        loaded.ops.recorded(loaded.model.forward, config.max_num_batched_tokens),
        loaded.model.logits,
        KVCache(spec.shape, sizes.num_blocks, sizes.num_host_blocks, sizes.block_size, getattr(torch, dtype), device),
        BatchBuilder(config.max_num_seqs, sizes.max_model_len, sizes.block_size, device),
        Sampler(vocabulary, config.max_num_seqs, device, loaded.ops.best, mask),
        config.max_num_seqs,
        device,
    )
    if announce is not None:
        runner = Forecaster(runner, partial(operations_of, spec.shape), announce)
    engine = Engine(
        Scheduler(memory, limits, token_bytes, special_bytes),
        runner,
        depth or (2 if device.type == "cuda" else 1),
        grammars if tokenizer else None,
    )
    return BuiltEngine(
        engine=engine,
        grammars=grammars,
        spec=spec,
        sizes=sizes,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
    )


def _writable(tokenizer: Tokenizer | None, vocabulary: int) -> list[bytes]:
    """What a grammar may have each token write: its text, and of special tokens those that mark calls and reasoning."""
    if tokenizer is None:
        return [b""] * vocabulary
    tables: list[Mapping[str, ToolFormat | ReasoningFormat]] = [TOOL_FORMATS, REASONING_FORMATS]
    markers = {name for table in tables for row in table.values() for name in row.markers}
    shown = frozenset(token for name in markers if (token := tokenizer.id_of(name)) is not None)
    return tokenizer.text_table(skip_special=True, shown=shown)


def _best_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """The native kernels where they are, and where this machine can build them; else plain torch, which is slow."""
    if device.type == "cpu":
        try:
            ops = native_ops(dtype)
            torch.set_num_threads(1)  # two pools of threads on the same cores would hold each other up
            return ops
        except NoLibrary as reason:
            log.warning("no native CPU kernels (%s): plain torch computes, several times slower", reason)
    if device.type == "cuda":
        try:
            from quire_engine.ops.triton import triton_ops  # half a second that a CPU need not wait for

            ops = triton_ops()
            ops.best(torch.zeros(1, 1, device=device))  # it needs a C compiler, Python's headers, a folder to write to
            return ops
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("no Triton (%s): plain torch computes, several times slower", why)
    return reference_ops()


def _device(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise DeviceFailure("--device cuda, but torch sees no GPU here: use --device cpu, or run where a GPU is")
    return torch.device(wanted)


def _check_memory(spec: ModelSpec, dtype: str, device: torch.device) -> None:
    need, free = spec.shape.weight_bytes(dtype), _free_bytes(device)
    if need > free:
        plain = f" once they are dequantised to {dtype}" if spec.quantization else ""
        raise MemoryFailure(
            f"the weights need {need / 2**30:.1f} GiB{plain}, and {free / 2**30:.1f} GiB are free on {device}"
        )


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
