"""Reads resources and profiles from YAML files; every mistake names the file and the field. And writes YAML."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from quire_api.deployment import API_VERSION, KIND, LLMDeployment
from quire_api.errors import InvalidInput, explain
from quire_operator.settings import PROFILES, AcceleratorProfile

__all__ = ["dump", "files_of", "load", "load_profiles", "load_resource"]


def load(paths: list[str], *, may_be_none: bool = False) -> list[LLMDeployment]:
    """All resources of the files and folders, in order; InvalidInput lists every mistake of all of them."""
    found: list[LLMDeployment] = []
    problems: list[str] = []
    for path in files_of(paths):
        for number, document in enumerate(_documents(path), start=1):
            try:
                found.append(LLMDeployment.parse(load_resource(document)))
            except InvalidInput as error:
                where = f"{path}" if number == 1 else f"{path} (document {number})"
                problems += [f"{where}: {problem}" for problem in error.problems]
    names = [(d.metadata.namespace, d.metadata.name) for d in found]
    problems += [
        f"{name[1]}: two resources have this name; rename one"
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if problems:
        raise InvalidInput(problems)
    if not found and not may_be_none:
        raise InvalidInput([f"{', '.join(paths)}: no {KIND} in it"])
    return found


def load_profiles(path: Path | None) -> dict[str, AcceleratorProfile]:
    """The profiles that there are: those of the file go before the built-in ones."""
    if path is None:
        return PROFILES
    told: Any = next((document for file in files_of([str(path)]) for document in _documents(file)), {})
    if not isinstance(told, dict):
        raise InvalidInput([f"{path}: profiles are a mapping from names, not {told!r:.60}"])
    return {**PROFILES, **{str(name): _profile(f"{path}: {name}", value) for name, value in told.items()}}


def _profile(where: str, value: object) -> AcceleratorProfile:
    try:
        return AcceleratorProfile.model_validate(value)
    except ValidationError as error:
        raise explain(error, AcceleratorProfile, lambda place: ".".join([where, *map(str, place)])) from None


def load_resource(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidInput(
            [f"a resource is a mapping with apiVersion: {API_VERSION} and kind: {KIND}, not {document!r:.60}"]
        )
    return document


def files_of(paths: list[str]) -> list[Path]:
    """The files that `paths` name, those in folders in the order of their names."""
    files: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            files += sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        elif path.is_file():
            files.append(path)
        else:
            raise InvalidInput([f"{name}: there is no such file or folder"])
    return files


def _documents(path: Path) -> list[Any]:
    try:
        return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: not YAML: {' '.join(str(error).split())}"]) from None


def dump(document: Any) -> str:
    return yaml.safe_dump(document, sort_keys=False, width=120)
