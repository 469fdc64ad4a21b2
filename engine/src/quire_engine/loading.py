"""From a checkpoint's folder to a model on its device: what build.py puts an engine around.

Whatever is wrong with it is an EngineFailure in a sentence, and found before the weights are read where it can be.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

import torch

from quire_api.engine import EngineConfig
from quire_engine.errors import ConfigFailure, MemoryFailure
from quire_engine.locate import check_hashes, locate_model
from quire_engine.models import ENCODERS, Build
from quire_engine.models.weights import DummyWeights, Weights, saved_bytes
from quire_engine.ops import Ops
from quire_engine.ops.choose import best_ops
from quire_engine.process.gate import own_address
from quire_engine.process.nodes import nodes_of
from quire_engine.quant import form_of, scheme_of
from quire_engine.runtime.machine import device_of
from quire_engine.runtime.ranks import ALONE, Ranks
from quire_engine.runtime.room import check_room
from quire_engine.runtime.together import Join, Together
from quire_engine.spec import ModelSpec, read_spec
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "memory_is_named"]

log = logging.getLogger("quire.engine")

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel(Generic[Model]):
    model: Model
    spec: ModelSpec
    tokenizer: Tokenizer | None
    dtype: str
    device: torch.device
    ops: Ops
    given_bytes: int  # of its weights


def load_model(
    config: EngineConfig,
    table: Mapping[str, Build[Model]],
    ops: Ops | None,
    with_tokenizer: bool,
    rank: int = 0,
    meet: Callable[[Join], Ranks] | None = None,
) -> LoadedModel[Model]:
    """`meet` is asked for the others, if there are any."""
    folder = locate_model(config.model)
    nodes = nodes_of(config, os.environ)
    first = rank % nodes.each == 0  # of this machine
    if config.verify_weights == "always" and first:
        check_hashes(folder)
    spec = read_spec(folder, config.max_model_len)
    if spec.architecture not in table:
        hint = "it makes embeddings, no text" if spec.architecture in ENCODERS else f"only {', '.join(sorted(table))}"
        raise ConfigFailure(f"architecture {spec.architecture} is not supported here: {hint}")
    rope = spec.ropes[0] if spec.ropes else None
    if rope is not None and rope.kind == "longrope" and first:
        which = "longer than" if (config.max_model_len or spec.trained_len) > rope.original_len else "up to"
        log.info("positions are turned as in texts of %s %d tokens: --max-model-len decides", which, rope.original_len)
    device = device_of(config.device, nodes.each, rank % nodes.each)
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    torch_dtype = getattr(torch, dtype)
    dummy = config.load_format == "dummy"
    said = scheme_of(spec.quantization, config.quantization)
    scheme = None if dummy else said
    with memory_is_named():
        ops = ops or best_ops(device, torch_dtype, nodes.each)
    spec = replace(spec, shape=replace(spec.shape, values_beside=not ops.finds_values_in_keys))
    saved = (
        saved_bytes(folder, torch_dtype, scheme, ops.keeps, spec.shape.layers)
        if scheme is not None and ops.keeps
        else 0
    )
    if first or device.type == "cuda":  # who comes later finds memory in use by those who came before
        check_room(
            spec.shape, dtype, device,
            tensor=config.tensor_parallel_size, stages=config.pipeline_parallel_size, here=nodes.each,
            dequantised=scheme is not None, saved=saved,
        )  # fmt: skip
    ranks = ALONE
    if nodes.ranks > 1 and meet is not None:
        tensor, stages = config.tensor_parallel_size, config.pipeline_parallel_size
        hidden = spec.shape.hidden
        address = own_address(nodes)
        ranks = meet(
            partial(
                Together,
                address=address,
                tensor=tensor,
                stages=stages,
                hidden=hidden,
                dtype=torch_dtype,
                device=device,
                invariance=ops.invariance,
            )
        )
    with memory_is_named():
        tokenizer = Tokenizer(folder, spec.shape.vocabulary) if with_tokenizer else None
        ops = replace(ops, ranks=ranks)
        weights = (
            DummyWeights(torch_dtype, device, form_of(spec.quantization), ops.keeps)
            if dummy
            else Weights(folder, torch_dtype, device, scheme, ops.keeps)
        )
        with weights:
            model = table[spec.architecture](spec, weights, ops, device)
    if scheme is not None and rank == 0:
        how = "stay in few bits where kernels take them" if saved else "were dequantised while they were read"
        plain = spec.shape.weight_bytes(dtype) / 2**30
        log.info("the weights %s: %.2f GiB here, %.2f in plain %s", how, weights.given_bytes / 2**30, plain, dtype)
    given = weights.given_bytes
    return LoadedModel(
        model=model, spec=spec, tokenizer=tokenizer, dtype=dtype, device=device, ops=ops, given_bytes=given
    )


@contextmanager
def memory_is_named() -> Iterator[None]:
    """torch says in many ways that memory ran out; we say it in one."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise MemoryFailure(f"out of memory while loading: {str(error).splitlines()[0]}") from None
