"""A JSON schema as the compiler of grammars keeps it exactly, or the reason why it cannot.

The compiler looks at one of `$ref`, `const`, `enum`, `anyOf`, `oneOf`, or `type` with its keywords, and silently leaves out
what stands beside it or what it does not know. Here what stands beside is moved to where it is looked at, and what
would be lost is refused: every answer is valid. Not every valid answer can be given:

    objects have the properties that are named, in that order, and others only if `additionalProperties` says so;
    a schema without `type` is of the type whose keywords it has;
    `format` constrains if the compiler knows it, and is a remark if not, as JSON Schema has it.
"""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["Unsupported", "normalised"]

Schema = dict[str, Any]

DEEPEST = 64  # of schemas in schemas
KEYWORDS = {
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    "object": (
        "properties", "required", "additionalProperties", "unevaluatedProperties", "patternProperties",
        "propertyNames", "minProperties", "maxProperties",
    ),
}  # fmt: skip
COMBINING = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
ASSERTING = ("type", *(keyword for keywords in KEYWORDS.values() for keyword in keywords))
IMPOSSIBLE = (
    "not", "if", "contains", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems",
    "$dynamicRef", "$recursiveRef",
)  # fmt: skip
HIGHER = ("minLength", "minimum", "exclusiveMinimum", "minItems", "minProperties")  # of two, the larger one counts
LOWER = ("maxLength", "maximum", "exclusiveMaximum", "maxItems", "maxProperties")
PYTHON = {
    "string": str, "integer": int, "number": int | float, "array": list, "object": dict, "boolean": bool, "null": None.__class__,
}  # fmt: skip
NO_LIMIT = 1024  # a format and a length cannot both be kept; a format is shorter than so many characters, or never ends


class Unsupported(ValueError):
    """The message says where in the schema, and what to change."""


def normalised(schema: Any) -> Any:
    return _Walk(schema).node(schema, "#", 0)


class _Walk:
    def __init__(self, root: Any) -> None:
        self._root = root

    def node(self, schema: Any, path: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise Unsupported(f"{path} is {str(schema)[:80]!r}, and a schema must be an object")
        if depth > DEEPEST:
            raise Unsupported(f"{path}: schemas are nested more than {DEEPEST} deep")
        node = dict(schema)
        for keyword in IMPOSSIBLE:
            if keyword in node:
                raise Unsupported(f'{path}: "{keyword}" cannot be guaranteed: leave it out')
        if node.get("uniqueItems"):
            raise Unsupported(f'{path}: "uniqueItems" cannot be guaranteed: leave it out')
        definitions = {
            name: self._all(node.pop(name), f"{path}/{name}", depth)
            for name in ("$defs", "definitions")
            if name in node
        }
        return {**self._combined(node, path, depth), **definitions}

    def _combined(self, node: Schema, path: str, depth: int) -> Schema:
        """One of the six that combine, alone; else a type."""
        if "allOf" in node:
            for part in self._schemas(node.pop("allOf"), f"{path}/allOf"):
                node = self._merged(node, part, f"{path}/allOf", depth)
        present = [keyword for keyword in COMBINING if keyword in node]
        if not present:
            return self._typed(node, path, depth)
        if len(present) > 1:
            raise Unsupported(f'{path}: "{present[0]}" beside "{present[1]}" cannot be guaranteed: leave one out')
        keyword = present[0]
        value = node.pop(keyword)
        beside = {name: each for name, each in node.items() if name in ASSERTING}
        if keyword == "$ref":
            target = self._target(value, path)
            return self.node(self._merged(beside, target, path, depth), path, depth + 1) if beside else {"$ref": value}
        if keyword in ("anyOf", "oneOf"):
            options = self._schemas(value, f"{path}/{keyword}")
            if keyword == "oneOf":  # the compiler has to see that no two can be met at once, which a reference hides
                options = [self._shown(option, path) for option in options]
            if beside:
                options = [self._merged(beside, option, f"{path}/{keyword}", depth) for option in options]
            options = self._list(options, f"{path}/{keyword}", depth)
            return {"anyOf" if _differ_in_type(options) else keyword: options}
        return self._values(keyword, value, beside, path)

    def _values(self, keyword: str, value: Any, beside: Schema, path: str) -> Schema:
        """`const` or `enum`, of those values that have the type."""
        if keyword == "enum" and not isinstance(value, list):
            raise Unsupported(f"{path}/enum must be a list")
        kinds = beside.pop("type", None)
        if beside:
            raise Unsupported(f'{path}: "{next(iter(beside))}" beside "{keyword}" cannot be guaranteed: leave it out')
        values = [value] if keyword == "const" else value
        if kinds is not None:
            values = [each for each in values if any(_is(each, kind) for kind in _kinds(kinds, path))]
        if not values:
            raise Unsupported(f"{path}: no value of {keyword} is of the type {kinds}")
        return {"const": values[0]} if keyword == "const" else {"enum": values}

    def _typed(self, node: Schema, path: str, depth: int) -> Schema:
        if "type" not in node:
            kinds = [kind for kind, keywords in KEYWORDS.items() if any(keyword in node for keyword in keywords)]
            if len(kinds) > 1:
                raise Unsupported(f'{path} has keywords of {" and ".join(kinds)}: give it a "type"')
            if not kinds:
                return {}
            node["type"] = kinds[0]
        kinds = _kinds(node["type"], path)
        if "object" in kinds:
            self._object(node, path, depth)
        if "array" in kinds:
            self._array(node, path, depth)
        if "string" in kinds:
            _string(node, path)
        kept = {"type", *(k for kind in kinds for k in KEYWORDS.get("number" if kind == "integer" else kind, ()))}
        return {name: value for name, value in node.items() if name in kept}

    def _object(self, node: Schema, path: str, depth: int) -> None:
        unevaluated = node.pop("unevaluatedProperties", None)
        if unevaluated is not None:
            if not isinstance(unevaluated, bool):
                raise Unsupported(f'{path}: a schema for "unevaluatedProperties" cannot be guaranteed: leave it out')
            node.setdefault("additionalProperties", unevaluated)
        closed = "properties" in node or "patternProperties" in node or "propertyNames" in node
        for name in ("properties", "patternProperties"):
            if name in node:
                node[name] = self._all(node[name], f"{path}/{name}", depth)
        if "patternProperties" in node:
            node["patternProperties"] = {whole(key, path): each for key, each in node["patternProperties"].items()}
        if "propertyNames" in node:
            names = node["propertyNames"]
            names = {**names, "type": "string"} if isinstance(names, Mapping) and "$ref" not in names else names
            node["propertyNames"] = self.node(names, f"{path}/propertyNames", depth + 1)
        if "additionalProperties" in node:
            node["additionalProperties"] = self.node(
                node["additionalProperties"], f"{path}/additionalProperties", depth + 1
            )
        elif not closed:
            node["additionalProperties"] = True
        self._require(node, path)

    def _require(self, node: Schema, path: str) -> None:
        """A name that is required is a property."""
        required = node.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise Unsupported(f"{path}/required must be a list of names")
        missing = [name for name in required if name not in node.get("properties", {})]
        others = node.get("additionalProperties", True)
        if missing and (others is False or "patternProperties" in node or "propertyNames" in node):
            raise Unsupported(f"{path}: {missing[0]!r} is required, and no property of that name is declared")
        if missing:
            node["properties"] = {**node.get("properties", {}), **dict.fromkeys(missing, others)}

    def _array(self, node: Schema, path: str, depth: int) -> None:
        if isinstance(node.get("items"), list):  # as older drafts have it
            node["prefixItems"] = node.pop("items")
            if "additionalItems" in node:
                node["items"] = node["additionalItems"]
        node.pop("additionalItems", None)
        if "prefixItems" in node:
            where = f"{path}/prefixItems"
            node["prefixItems"] = self._list(self._schemas(node["prefixItems"], where), where, depth)
        if "items" in node:
            node["items"] = self.node(node["items"], f"{path}/items", depth + 1)

    def _merged(self, one: Schema, other: Any, path: str, depth: int) -> Schema:
        """What both say, not normalised yet; of remarks, the first."""
        if other is True:
            return one
        if not isinstance(other, Mapping) or depth > DEEPEST:
            raise Unsupported(f"{path}: these schemas cannot be taken together")
        if "allOf" in other:
            other = dict(other)
            for part in self._schemas(other.pop("allOf"), path):
                other = self._merged(other, part, path, depth + 1)
        saying = [name for name in one if name in ASSERTING or name in COMBINING or name in IMPOSSIBLE]
        if "$ref" in other and saying:
            rest = {name: value for name, value in other.items() if name != "$ref"}
            other = self._merged(rest, self._target(other["$ref"], path), path, depth + 1)
        for first, second in ((one, other), (other, one)):
            if first.get("additionalProperties", True) is not True and "properties" in second:
                raise Unsupported(
                    f'{path}: "additionalProperties" of one and "properties" of another cannot both be kept'
                )
        both = dict(one)
        for name, value in other.items():
            both[name] = _agreed(name, one[name], value, path) if name in one else value
        return both

    def _target(self, reference: Any, path: str) -> Any:
        found = self._root
        if reference == "#":
            return found
        if not isinstance(reference, str) or not reference.startswith("#/"):
            raise Unsupported(f'{path}: "$ref" is {str(reference)[:80]!r}, and must begin with #/, within this schema')
        for step in reference[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, Mapping) and step in found:
                found = found[step]
            else:
                raise Unsupported(f'{path}: "$ref" is {reference[:80]!r}, and nothing is there')
        return found

    def _shown(self, schema: Any, path: str) -> Any:
        """What stands where a schema refers to, and does nothing else."""
        if not isinstance(schema, Mapping) or "$ref" not in schema:
            return schema
        if any(name in schema for name in (*ASSERTING, *COMBINING[1:])):
            return schema
        return self._target(schema["$ref"], path)

    def _schemas(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise Unsupported(f"{path} must be a list of schemas")
        return value

    def _list(self, schemas: list[Any], path: str, depth: int) -> list[Any]:
        return [self.node(each, f"{path}/{number}", depth + 1) for number, each in enumerate(schemas)]

    def _all(self, schemas: Any, path: str, depth: int) -> Schema:
        if not isinstance(schemas, Mapping):
            raise Unsupported(f"{path} must be an object of schemas")
        return {str(name): self.node(each, f"{path}/{name}", depth + 1) for name, each in schemas.items()}


def _agreed(name: str, one: Any, other: Any, path: str) -> Any:
    if one == other or name not in (*ASSERTING, *COMBINING):
        return one
    if name in HIGHER:
        return max(one, other)
    if name in LOWER:
        return min(one, other)
    if name == "required":
        return [*one, *(each for each in other if each not in one)]
    if name == "type":
        kept = [kind for kind in _kinds(one, path) if kind in _kinds(other, path)]
        if {"integer", "number"} <= {*_kinds(one, path), *_kinds(other, path)} and not kept:
            kept = ["integer"]
        if kept:
            return kept[0] if len(kept) == 1 else kept
    if name == "properties" and isinstance(one, Mapping) and isinstance(other, Mapping):
        shared = {key: {"allOf": [one[key], other[key]]} for key in one if key in other and one[key] != other[key]}
        return {**one, **other, **shared}
    raise Unsupported(f'{path}: "{name}" is given twice, and both cannot be guaranteed')


def _differ_in_type(options: list[Any]) -> bool:
    """No value can meet two of them."""
    kinds = [
        kind
        for each in options
        for kind in (_kinds(each["type"], "") if isinstance(each, Mapping) and "type" in each else [""])
    ]
    kinds = ["number" if kind == "integer" else kind for kind in kinds]
    return "" not in kinds and len(set(kinds)) == len(kinds)


def _string(node: Schema, path: str) -> None:
    if "pattern" in node:
        node["pattern"] = whole(node["pattern"], path)
    if "format" in node and "pattern" not in node:
        if node.get("minLength") in (0, 1):
            del node["minLength"]
        if isinstance(node.get("maxLength"), int) and node["maxLength"] >= NO_LIMIT:
            del node["maxLength"]


def _kinds(value: Any, path: str) -> list[str]:
    kinds = value if isinstance(value, list) else [value]
    for kind in kinds:
        if kind not in PYTHON:
            raise Unsupported(f'{path}: "type" is {str(kind)[:80]!r}, and must be one of {", ".join(PYTHON)}')
    return kinds


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, PYTHON[kind])


def whole(pattern: Any, path: str) -> str:
    """A pattern may match anywhere in a string; the compiler takes it to be of all of the string."""
    if not isinstance(pattern, str):
        raise Unsupported(f"{path}: a pattern is {str(pattern)[:80]!r}, and must be text")
    alternatives = [_anchored(each) for each in _alternatives(pattern)]
    return f"^{alternatives[0]}$" if len(alternatives) == 1 else f"^(?:{'|'.join(alternatives)})$"


def _anchored(pattern: str) -> str:
    before = "" if pattern.startswith("^") else ".*"
    after = "" if re.search(r"(?<!\\)(\\\\)*\$$", pattern) else ".*"
    return before + pattern.removeprefix("^")[: None if after else -1] + after


def _alternatives(pattern: str) -> list[str]:
    """What | divides, outside of groups and classes."""
    found, begin, depth, in_class = [], 0, 0, False
    for piece in re.finditer(r"\\.|[\[\]()|]", pattern, re.S):
        mark = piece[0]
        if in_class:
            in_class = mark != "]"
        elif mark == "[":
            in_class = True
        elif mark in "()":
            depth += 1 if mark == "(" else -1
        elif mark == "|" and depth == 0:
            found.append(pattern[begin : piece.start()])
            begin = piece.end()
    return [*found, pattern[begin:]]
