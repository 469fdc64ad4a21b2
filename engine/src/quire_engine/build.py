"""The composition root: EngineConfig -> a loaded engine. Only this and loading.py read the config.

Everything below takes parts, not options; to see what an option does, look for it here.
"""

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch

from quire_api.engine import EngineConfig
from quire_api.flags import to_argv
from quire_engine.core.blocks import BlockPool
from quire_engine.core.memory import Memory
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.core.step import StepPlan
from quire_engine.engine import Engine, Runner
from quire_engine.errors import ConfigFailure, EngineFailure
from quire_engine.grammars.store import GrammarStore
from quire_engine.grammars.writable import writable
from quire_engine.loading import LoadedModel, load_model, memory_is_named
from quire_engine.locate import locate_model
from quire_engine.models import ENCODERS, GENERATORS, CausalLM
from quire_engine.ops import Forward, Ops
from quire_engine.process.crew import Crew, LedRunner
from quire_engine.process.link import Allotted, Loaded, Pong, Rows
from quire_engine.process.muster import muster
from quire_engine.process.nodes import nodes_of
from quire_engine.runtime.batch import BatchBuilder
from quire_engine.runtime.embedder import Embedder
from quire_engine.runtime.follower import Follower, Leader
from quire_engine.runtime.forecast import SLOWER, Forecaster, operations_of
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.runtime.ranks import ALONE, Ranks
from quire_engine.runtime.roofline import limits_of, seconds_of
from quire_engine.runtime.room import free_for_each
from quire_engine.runtime.runner import ModelRunner
from quire_engine.runtime.sizing import Sizes, graph_bytes, plan_sizes, share_of, split_bytes, swap_cost
from quire_engine.runtime.together import Join, open_store
from quire_engine.sampling.grammar import GrammarMask
from quire_engine.sampling.sampler import Sampler
from quire_engine.spec import ModelSpec, read_spec
from quire_engine.text.tokenizer import Tokenizer

__all__ = [
    "BuiltEmbedder",
    "BuiltEngine",
    "BuiltRank",
    "build_embedder",
    "build_engine",
    "build_follower",
    "build_model",
]

COMPILES_ALL = 600  # tokens of the first prompt on a GPU: kernels for prompts, and for contexts in several parts


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    engine: Engine
    grammars: GrammarStore
    spec: ModelSpec
    sizes: Sizes
    tokenizer: Tokenizer | None
    dtype: str
    device: torch.device
    crew: Crew | None  # the other ranks, if there are any
    invariant: bool  # a request may have the same bits in any batch

    @property
    def max_model_len(self) -> int:
        return self.sizes.max_model_len

    def warm_up(self) -> None:
        """Real requests through all of it, two steps each: what is ready has computed tokens, and knows how long it takes.

        On a GPU one more draws, and one wants the same bits in any batch, for kernels are compiled when they are first
        launched, which may take a second each.
        """
        self._try(TokenParams(max_tokens=2, min_tokens=2, temperature=0.0))
        if self.device.type != "cpu":
            self._try(TokenParams(max_tokens=2, min_tokens=2, top_k=20, top_p=0.9, repetition_penalty=1.1, logprobs=2))
            if self.invariant:
                self._try(TokenParams(max_tokens=2, min_tokens=2, batch_invariant=True))

    def _try(self, params: TokenParams) -> None:
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
    lost: Callable[[EngineFailure], None] | None = None,
) -> BuiltEngine:
    """Load the model; EngineFailure says in a sentence what is wrong.

    `depth` is how many steps may be under way. None takes what suits the device: a GPU computes a step while the
    host plans the next; a CPU computes while it is asked to, so there is nothing to run ahead of. `ops` are the
    kernels; None takes the best there are. Without a tokenizer, tokens have no text: only ids go in and out.
    `announce` is told before each step how many seconds it should take. With several ranks this process is the first, and
    starts the others; `lost` is called, by another thread, when one of them has ended: no step can be computed any more.
    """
    crew: list[Crew] = []
    nodes = nodes_of(config, os.environ)
    if nodes.node > 0:
        raise ConfigFailure(f"node {nodes.node} only runs ranks of another's engine: start it with `quire serve`")

    def meet(join: Join) -> Ranks:
        others, ranks = muster(nodes, to_argv(config), lost, join)
        crew.append(others)
        return ranks

    try:
        loaded = load_model(config, GENERATORS, ops, with_tokenizer, 0, meet)
        with memory_is_named():
            return _assemble(config, loaded, depth, announce, crew[0] if crew else None)
    except BaseException:
        for each in crew:
            each.close()
        raise


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltRank:
    """Another rank than the first: a part of the model, and soon of its cache."""

    loaded: LoadedModel[CausalLM]
    free_bytes: int
    max_num_seqs: int

    def follower(self, sizes: Sizes) -> Follower:
        loaded = self.loaded
        with memory_is_named():
            builder = BatchBuilder(self.max_num_seqs, sizes.max_model_len, sizes.block_size, loaded.device)
            row = torch.empty(loaded.spec.shape.hidden, dtype=getattr(torch, loaded.dtype), device=loaded.device)
            ops = loaded.ops
            return Follower(loaded.model, ops.ranks, _cache(loaded, sizes), builder, row, ops.invariance)


def build_follower(config: EngineConfig, rank: int, port: int) -> BuiltRank:
    """Load this rank's part of the model; the ranks meet at the port."""

    nodes = nodes_of(config, os.environ)
    loaded = load_model(config, GENERATORS, None, False, rank, lambda join: join(rank, open_store(nodes.address, port)))
    free = free_for_each(loaded.device, nodes.each)
    return BuiltRank(loaded=loaded, free_bytes=free, max_num_seqs=config.max_num_seqs)


def build_embedder(config: EngineConfig, *, ops: Ops | None = None, with_tokenizer: bool = True) -> BuiltEmbedder:
    """Load a model for its embeddings: an encoder, or what is below the output head of a generator."""
    if config.tensor_parallel_size * config.pipeline_parallel_size > 1:
        raise ConfigFailure(
            "embeddings are made by one rank: leave out --tensor-parallel-size and --pipeline-parallel-size"
        )
    if config.kv_cache_dtype != "auto":
        raise ConfigFailure("embeddings keep nothing in a cache: leave out --kv-cache-dtype")
    loaded = load_model(config, {**GENERATORS, **ENCODERS}, ops, with_tokenizer)
    with memory_is_named():
        embedder = Embedder(
            loaded.model,
            loaded.spec,
            dtype=getattr(torch, loaded.dtype),
            block_size=config.block_size,
            max_tokens=max(config.max_num_batched_tokens, config.max_model_len or loaded.spec.trained_len),
            longest=config.max_model_len,
            device=loaded.device,
        )
    return BuiltEmbedder(
        embedder=embedder, spec=loaded.spec, tokenizer=loaded.tokenizer, dtype=loaded.dtype, device=loaded.device
    )


def build_model(
    config: EngineConfig,
    *,
    with_tokenizer: bool = True,
    announce: Callable[[float], None] | None = None,
    lost: Callable[[EngineFailure], None] | None = None,
) -> BuiltEngine | BuiltEmbedder:
    """Whichever the checkpoint is for; modules.json is how sentence-transformers marks a model for embeddings."""
    folder = locate_model(config.model)
    if read_spec(folder).architecture in ENCODERS or (folder / "modules.json").exists():
        return build_embedder(config, with_tokenizer=with_tokenizer)
    return build_engine(config, with_tokenizer=with_tokenizer, announce=announce, lost=lost)


def _assemble(
    config: EngineConfig,
    loaded: LoadedModel[CausalLM],
    depth: int | None,
    announce: Callable[[float], None] | None,
    crew: Crew | None,
) -> BuiltEngine:
    """Size the KV cache by what is left, and put the parts together."""
    spec, tokenizer, dtype, device = loaded.spec, loaded.tokenizer, loaded.dtype, loaded.device
    others = [each.free_bytes for each in crew.hear(Loaded)] if crew else []
    sizes = plan_sizes(
        share_of(spec.shape, config.tensor_parallel_size, config.pipeline_parallel_size),
        dtype,
        cache_dtype=_cache_dtype(config, loaded),
        trained_len=spec.trained_len,
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_cache_gib=config.kv_cache_gib,
        swap_space_gib=config.swap_space_gib,
        free_bytes=min([free_for_each(device, nodes_of(config, os.environ).each), *others]),
        workspace=None if device.type == "cpu" else split_bytes if config.enforce_eager or crew else graph_bytes,
    )
    if crew:
        crew.tell(Allotted(sizes=sizes))
    memory = Memory(
        BlockPool(sizes.num_blocks, sizes.block_size),
        BlockPool(sizes.num_host_blocks, sizes.block_size),
        prefix_caching=config.enable_prefix_caching,
        swap_cost=swap_cost(spec.shape, sizes.cache_dtype, device.type),
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
    grammars = GrammarStore(writable(tokenizer, vocabulary), {token for token in spec.end_tokens if token < vocabulary})
    mask = GrammarMask(grammars, token_bytes, config.max_num_seqs, device, loaded.ops)
    forward: Forward = loaded.model.forward
    logits = loaded.model.logits
    if crew:  # not recorded: sums of ranks are no kernels (decision 27)
        leader = Leader(loaded.model, loaded.ops.ranks, partial(_want, crew, config.tensor_parallel_size))
        forward, logits = leader.forward, leader.logits
    elif not config.enforce_eager:
        forward = loaded.ops.recorded(forward, config.max_num_batched_tokens)
    runner: Runner = ModelRunner(
        forward,
        logits,
        _cache(loaded, sizes),
        BatchBuilder(config.max_num_seqs, sizes.max_model_len, sizes.block_size, device),
        Sampler(vocabulary, config.max_num_seqs, device, loaded.ops, mask),
        config.max_num_seqs,
        device,
        loaded.ops.invariance,
    )
    if crew:
        crew.hear(Pong)
        runner = LedRunner(runner, crew)
        weakref.finalize(runner, crew.close)
    if announce is not None:
        slower = 1 if device.type == "cpu" else SLOWER
        runner = Forecaster(runner, partial(operations_of, spec.shape, slower=slower), announce)
    engine = Engine(
        Scheduler(memory, limits, token_bytes, special_bytes),
        runner,
        depth or (2 if device.type == "cuda" else 1),
        grammars if tokenizer else None,
        _least_seconds(loaded, sizes.cache_dtype),
        invariant=loaded.ops.invariance is not None,
    )
    return BuiltEngine(
        engine=engine,
        grammars=grammars,
        spec=spec,
        sizes=sizes,
        tokenizer=tokenizer,
        dtype=dtype,
        device=device,
        crew=crew,
        invariant=loaded.ops.invariance is not None,
    )


def _cache(loaded: LoadedModel[CausalLM], sizes: Sizes) -> KVCache:
    """Of our own layers and heads."""
    ranks, shape = loaded.ops.ranks, loaded.spec.shape
    own = replace(shape, layers=len(ranks.layers(shape.layers)), kv_heads=ranks.share(shape.kv_heads).size)
    dtype = torch.float8_e4m3fn if sizes.cache_dtype == "fp8" else getattr(torch, sizes.cache_dtype)
    return KVCache(own, sizes.num_blocks, sizes.num_host_blocks, sizes.block_size, dtype, loaded.device)


def _cache_dtype(config: EngineConfig, loaded: LoadedModel[CausalLM]) -> str:
    if config.kv_cache_dtype == "auto":
        return loaded.dtype
    if not loaded.ops.caches_fp8:
        raise ConfigFailure("--kv-cache-dtype fp8 needs Triton's kernels, and so a GPU: leave it out")
    return config.kv_cache_dtype


def _least_seconds(loaded: LoadedModel[CausalLM], cache_dtype: str) -> Callable[[StepPlan], float] | None:
    """Of one rank with a device whose limits are known."""
    if loaded.device.type != "cuda" or loaded.ops.ranks is not ALONE:
        return None
    limits = limits_of(torch.cuda.get_device_name(loaded.device))
    if limits is None:
        return None
    saved = max(0, loaded.spec.shape.weight_bytes(loaded.dtype) - loaded.given_bytes)
    return partial(
        seconds_of,
        shape=loaded.spec.shape,
        dtype=loaded.dtype,
        limits=limits,
        saved_bytes=saved,
        cache_dtype=cache_dtype,
    )


def _want(crew: Crew, tensor: int, rows: int) -> None:
    crew.tell(Rows(count=rows), below=tensor)
