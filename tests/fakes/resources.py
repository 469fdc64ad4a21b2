"""Resources for tests: a good one, and ways to spoil it."""

import copy
from pathlib import Path
from typing import Any

import yaml

__all__ = ["BAD_RESOURCES", "bad_resources", "good", "spoiled"]

BAD_RESOURCES = Path(__file__).resolve().parents[1] / "quire_api" / "bad_resources.yaml"

_GOOD: dict[str, Any] = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "good", "namespace": "default"},
    "spec": {
        "model": {"name": "quire-tiny", "source": {"uri": "builtin://quire-tiny"}},
        "accelerator": {"profile": "cpu"},
        "engine": {"maxNumSeqs": 64},
    },
}


def good(**changes: Any) -> dict[str, Any]:
    """A valid resource; `changes` are paths with `__` for dots."""
    return spoiled({path.replace("__", "."): value for path, value in changes.items()})


def spoiled(changes: dict[str, Any]) -> dict[str, Any]:
    """The good resource with `changes`: path -> value, None removes."""
    resource = copy.deepcopy(_GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = resource
        for step in parents:
            node = node.setdefault(step, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return resource


def bad_resources() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = yaml.safe_load(BAD_RESOURCES.read_text())
    return cases
