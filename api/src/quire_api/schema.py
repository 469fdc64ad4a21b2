"""pydantic's JSON schema -> the structural schema a CRD needs. Pure.

The API server takes neither `$ref`, nor `anyOf` with null, nor `const`, nor the exclusive bounds,
and it prunes what it does not know; see docs/decisions/0002-crd-from-types.md for each difference.
"""

import json
from typing import Any

from pydantic import BaseModel

from quire_api.base import Strict
from quire_api.engine import EngineOptions

__all__ = ["structural"]

Schema = dict[str, Any]

_KEPT = {
    "type", "description", "enum", "pattern", "format", "default", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "properties", "required", "items", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
}  # fmt: skip
_DROPPED = {
    "title",
    "examples",
    "additionalProperties",
}  # where a type has properties, the last one is implied: unknown fields are pruned or refused


def structural(model: type[BaseModel]) -> Schema:
    """The schema of `model` as a CRD states it, with its rules as CEL."""
    source = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(source, source.get("$defs", {}), model, path=model.__name__)


def _convert(node: Schema, definitions: dict[str, Schema], model: type[BaseModel] | None, path: str) -> Schema:
    node = dict(node)
    node.pop("$defs", None)
    if "$ref" in node:
        name = node.pop("$ref").removeprefix("#/$defs/")
        if f"/{name}/" in path:
            raise ValueError(f"{path}: {name} contains itself, which a CRD cannot state")
        node, path = {**definitions[name], **node}, f"{path}/{name}/"
    if "anyOf" in node:
        branches = [branch for branch in node.pop("anyOf") if branch.get("type") != "null"]
        if len(branches) != 1:
            raise ValueError(f"{path}: a union of types has no structural schema; use one type")
        node = {**branches[0], **node}
        if "$ref" in node:
            return _convert(node, definitions, model, path)
    if "const" in node:
        node["enum"] = [node.pop("const")]
    unknown = set(node) - _KEPT - _DROPPED
    if unknown:
        raise ValueError(f"{path}: no structural form for {sorted(unknown)}; use `ge`, `le`, `pattern` or a rule")

    is_switch = node.get("default", ...) is None  # its presence means something: the API server must not add it
    result = {key: value for key, value in node.items() if key in _KEPT}
    if result.get("default", ...) is None or result.get("default") in ("", [], 0):
        result.pop("default", None)
    if "examples" in node and "description" in result:
        result["description"] += f" Example: `{_example(node['examples'][0])}`."
    if "enum" in result and all(isinstance(choice, int) for choice in result["enum"]):
        result["type"] = "integer"
    if result.get("type") == "integer":
        result["format"] = "int64" if result.get("maximum", 0) > 2**31 - 1 else "int32"
    if "properties" in result:
        result["properties"] = {
            name: _convert(child, definitions, _child(model, name), f"{path}.{name}")
            for name, child in node["properties"].items()
        }
        if model is EngineOptions:  # defaults would be frozen into stored objects; the engine has its own
            for child in result["properties"].values():
                child.pop("default", None)
        elif (
            "default" not in result and not is_switch
        ):  # else the defaults inside are never reached; spelled out, for the rules see them
            inside = {name: child["default"] for name, child in result["properties"].items() if "default" in child}
            result.update({"default": inside} if inside else {})
        if result.get("required"):
            result.pop("default", None)
    if "items" in result:
        result["items"] = _convert(node["items"], definitions, _child(model, None), f"{path}[]")
        result["items"].pop("default", None)  # there is no item before somebody writes one
    values = node.get("additionalProperties", False)
    if values is True:  # anything goes, and is kept as it is
        result["x-kubernetes-preserve-unknown-fields"] = True
    elif isinstance(values, dict):
        result["additionalProperties"] = _convert(values, definitions, None, f"{path}{{}}")
    if model is not None and issubclass(model, Strict) and model.rules and "items" not in result:
        result["x-kubernetes-validations"] = [{"rule": rule.cel, "message": rule.message} for rule in model.rules]
    return result


def _example(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _child(model: type[BaseModel] | None, name: str | None) -> type[BaseModel] | None:
    """The class behind a property (or behind the items of a list, which have rules of their own)."""
    if model is None:
        return None
    if name is None:
        return model
    field = next(f for n, f in model.model_fields.items() if name in (n, f.alias))
    pending: list[Any] = [field.annotation]
    while pending:
        part = pending.pop()
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
        pending += getattr(part, "__args__", ())
    return None
