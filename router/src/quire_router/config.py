"""The files of `quire router`: models with their engines, and API keys. Read, checked, and turned into plain data.

A mistake is `InvalidInput` with the file and the field, never half a registry.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, ValidationError

from quire_api.base import Strict
from quire_api.errors import InvalidInput, explain
from quire_router.keys import Keys, KeysFile
from quire_router.registry import Endpoint, Model, Registry, Strategy, Weigh

__all__ = ["RouterConfig", "address", "read_config", "read_keys"]

_DEFAULT = Model(name="")
_T = TypeVar("_T", bound=Strict)


def address(text: str) -> str:
    """`host:port`, or the path of a socket."""
    if text.startswith("/"):
        return text
    host, _, port = text.removeprefix("http://").rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text} is not HOST:PORT or /path/of/socket")
    return f"{host}:{port}"


class HoldConfig(Strict):
    requests: Annotated[int, Field(ge=0)] = _DEFAULT.hold_requests
    seconds: Annotated[float, Field(ge=0, le=3600)] = _DEFAULT.hold_s


class ModelConfig(Strict):
    name: Annotated[str, Field(min_length=1)]
    aliases: tuple[str, ...] = ()
    backends: tuple[Annotated[str, AfterValidator(address)], ...] = ()
    groups: tuple[str, ...] = ()
    strategy: Strategy = _DEFAULT.strategy
    weigh: Weigh = _DEFAULT.weigh
    max_inside: Annotated[int, Field(ge=1)] = _DEFAULT.max_inside
    hold: HoldConfig = HoldConfig()

    def model(self) -> Model:
        return Model(
            name=self.name,
            aliases=self.aliases,
            endpoints=tuple(Endpoint(address=backend) for backend in dict.fromkeys(self.backends)),
            groups=self.groups,
            strategy=self.strategy,
            weigh=self.weigh,
            max_inside=self.max_inside,
            hold_requests=self.hold.requests,
            hold_s=self.hold.seconds,
        )


class RouterConfig(Strict):
    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]


def read_config(path: Path) -> Registry:
    config = _read(path, RouterConfig)
    names = [name for model in config.models for name in (model.name, *model.aliases)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInput([f"{path}: {name}: two models have this name; rename one" for name in twice])
    return Registry(tuple(model.model() for model in config.models))


def read_keys(path: Path) -> Keys:
    entries = _read(path, KeysFile).keys
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in entries]
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise InvalidInput([f"{path}: two keys have the {what} {value}; take one out" for value in twice])
    return Keys(entries)


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        document: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: cannot be read: {error}"]) from None
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # no such date, and nested too deep, are not the first
        raise InvalidInput([f"{path}: not YAML: {' '.join(str(error).split())}"]) from None
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        found = explain(error, kind, lambda where: ".".join(str(step) for step in where) or kind.__name__)
        raise InvalidInput([f"{path}: {problem}" for problem in found.problems]) from None
