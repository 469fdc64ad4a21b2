"""EngineConfig <-> argv, both ways, from the fields alone.

`from_argv(to_argv(config)) == config` for every config (property-tested). Only options which were
set are rendered: the engine applies its own defaults, so that an engine upgrade may better them.
A field's flag is its name with dashes; a tuple takes several values or repeats; a bool gets `--no-`.

Command lines of `vllm serve` work: what has another name here is translated, and what has become moot is taken
with a warning (`take_moot`). A flag of vLLM whose feature we do not have is unknown, like any other.
"""

import argparse
import types
from collections.abc import Sequence
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from quire_api.engine import EngineConfig
from quire_api.errors import InvalidInput, explain
from quire_api.parser import FlagParser

__all__ = [
    "MOOT",
    "ONLY",
    "FlagParser",
    "add_flags",
    "config_from",
    "flag",
    "from_argv",
    "take_moot",
    "to_argv",
]

ALIASES = {"--swap-space": "--swap-space-gib", "--disable-log-requests": "--no-enable-log-requests"}

# Flags of `vllm serve` for which there is nothing to decide here -> why.
MOOT = {
    "--async-scheduling": "steps are planned ahead wherever the device allows it",
    "--disable-frontend-multiprocessing": "the engine always has a process of its own",
    "--disable-log-stats": "statistics are at /metrics, and are not logged",
    "--disable-uvicorn-access-log": "--enable-log-requests decides what is logged",
    "--distributed-executor-backend": "there is one way to run the processes of a model",
    "--enable-auto-tool-choice": "tool calls are read wherever the model has a format for them",
    "--enable-chunked-prefill": "prompts are always computed in chunks",
    "--gpu-memory-utilization": "memory is planned from what is free; --kv-cache-gib sets the cache",
    "--max-log-len": "--log-prompts cuts after 2,000 characters",
    "--uvicorn-log-level": "--log-level is for all of it",
    "--max-num-partial-prefills": "every prompt may be computed in part",
    "--max-seq-len-to-capture": "steps are recorded in the sizes that come",
    "--num-scheduler-steps": "every step is scheduled, one ahead of the device",
    "--trust-remote-code": "no code of a checkpoint is ever run",
    "--use-v2-block-manager": "there is one block manager",
}
# Flags of `vllm serve` for which we have one value -> that value.
ONLY = {
    "--api-server-count": "1",
    "--data-parallel-size": "1",
    "--max-logprobs": "20",
    "--response-role": "assistant",
}
_WITH_VALUE = {
    "--gpu-memory-utilization",
    "--max-log-len",
    "--uvicorn-log-level",
    "--distributed-executor-backend",
    "--max-num-partial-prefills",
    "--max-seq-len-to-capture",
    "--num-scheduler-steps",
}


def flag(field: str) -> str:
    return "--" + field.replace("_", "-")


def take_moot(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """`argv` without the moot flags and in our names, and a sentence for each that was left out."""
    kept: list[str] = []
    warnings: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        bare = name.replace("--no-", "--", 1)
        if bare in MOOT:
            warnings.append(f"{name} is not needed: {MOOT[bare]}")
            if bare in _WITH_VALUE and not equals:
                next(words, None)
        elif name in ONLY:
            given = value if equals else next(words, "")
            if given != ONLY[name]:
                raise InvalidInput([f"{name}: {given} is not supported yet, only {ONLY[name]}"])
        else:
            kept.append(ALIASES.get(name, name) + equals + value)
    return kept, warnings


def to_argv(config: EngineConfig) -> list[str]:
    """The flags that give `config` back, in the order of the fields."""
    argv: list[str] = []
    for name in EngineConfig.model_fields:
        value = getattr(config, name)
        if name not in config.model_fields_set or value is None:
            continue
        if isinstance(value, bool):
            argv.append(flag(name) if value else flag("no_" + name))
            continue
        argv += [f"{flag(name)}={item}" for item in (value if isinstance(value, tuple) else (value,))]
    return argv


def from_argv(argv: Sequence[str]) -> EngineConfig:
    parser = FlagParser(prog="quire serve", add_help=False, allow_abbrev=False)
    add_flags(parser)
    return config_from(parser.parse_args(argv))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add one flag a field; unset flags stay out of the namespace."""
    for name, field in EngineConfig.model_fields.items():
        text = f"{field.description} (default: {_default(field)})".replace("%", "%%")
        kind = _kind(field.annotation)
        if kind is bool:
            parser.add_argument(flag(name), action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        elif kind is tuple:
            parser.add_argument(
                flag(name), nargs="+", action="extend", default=argparse.SUPPRESS, metavar="NAME", help=text
            )  # fmt: skip
        else:
            parser.add_argument(flag(name), default=argparse.SUPPRESS, metavar=_metavar(field.annotation), help=text)


def config_from(arguments: argparse.Namespace) -> EngineConfig:
    """Validate parsed flags; a mistake names the flag, as the user typed it."""
    values = {n: v for n, v in vars(arguments).items() if n in EngineConfig.model_fields}
    for name, value in values.items():
        if get_origin(EngineConfig.model_fields[name].annotation) is Literal and _is_int_literal(name):
            values[name] = int(value) if str(value).isdecimal() else value
    try:
        return EngineConfig.model_validate(values)
    except ValidationError as error:
        raise explain(error, EngineConfig, lambda loc: flag(str(loc[0])) if loc else "options") from None


def _is_int_literal(name: str) -> bool:
    return all(isinstance(choice, int) for choice in get_args(EngineConfig.model_fields[name].annotation))


def _kind(annotation: Any) -> type | None:
    """bool, tuple, or None for whatever takes one value."""
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if annotation is bool:
        return bool
    return tuple if get_origin(annotation) is tuple else None


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(str(choice) for choice in get_args(annotation)) + "}"
    names = [a.__name__ for a in (get_args(annotation) or (annotation,)) if a is not type(None)]
    return {"str": "TEXT", "int": "N", "float": "X"}[names[0]]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none, required"
    return "unset" if field.default in (None, ()) else str(field.default)
