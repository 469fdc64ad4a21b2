"""Text -> JSON: values written in XML, typed by a function's schema, and values written in Python.

Whatever the text is, the result is valid JSON; what fits no type is a string.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ANY", "Parameter", "escaped", "json_of_python", "json_of_text", "parameter_of", "quoted"]

STRING = frozenset({"string"})
ANY = frozenset({"null", "boolean", "integer", "number", "object", "array", "string"})
LONGEST_NUMBER = 400  # digits; longer ones are strings

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_NAMES = {"true": True, "false": False, "null": None}


def escaped(text: str) -> str:
    """The inside of a JSON string. Of halves of a pair, which no encoding can carry, the escape."""
    return _dumped(text)[1:-1]


def quoted(text: str) -> str:
    return f'"{escaped(text)}"'


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a function's schema says of a parameter."""

    types: frozenset[str]
    choices: frozenset[str] = frozenset()  # if it is one of some strings: whitespace around them is layout

    @property
    def is_any_string(self) -> bool:
        """Whatever is written is its value, and may be sent as it comes."""
        return self.types == STRING and not self.choices


def parameter_of(schema: Any, name: str) -> Parameter:
    """One that the schema does not know is a string."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping) or name not in properties:
        return Parameter(STRING)
    own = properties[name]
    values = own.get("enum", [own.get("const")]) if isinstance(own, Mapping) else []
    choices = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    return Parameter(_types(own, schema, {}, 0) or ANY, frozenset(choices))


def _types(schema: Any, root: Mapping[str, Any], seen: dict[str, frozenset[str]], depth: int) -> frozenset[str]:
    """None at all: the schema does not say. `seen` has what references stand for: each is followed once."""
    if not isinstance(schema, Mapping) or depth > 8:
        return frozenset()
    if isinstance(kind := schema.get("type"), str):
        return frozenset({kind}) & ANY
    if isinstance(kind, list):
        return frozenset(k for k in kind if isinstance(k, str)) & ANY
    if isinstance(schema.get("enum"), list) or "const" in schema:
        return frozenset(_type_of(value) for value in schema.get("enum", [schema.get("const")]))
    if isinstance(reference := schema.get("$ref"), str):
        if reference not in seen:
            seen[reference] = frozenset()  # until it is known, for it may contain itself
            seen[reference] = _types(_resolve(root, reference), root, seen, depth + 1)
        return seen[reference]
    found: set[str] = set()
    for key in ("anyOf", "oneOf", "allOf"):
        branches = schema.get(key)
        for branch in branches if isinstance(branches, list) else ():
            found |= _types(branch, root, seen, depth + 1) or ANY
    return frozenset(found)


def _resolve(root: Any, reference: str) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        root = root.get(part) if isinstance(root, Mapping) else None
    return root


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case list():
            return "array"
        case dict():
            return "object"
    return "string"


def json_of_text(text: str, parameter: Parameter) -> str:
    """A value as XML has it: without quotes if it is a string."""
    plain, types = text.strip(), parameter.types
    if text not in parameter.choices and plain in parameter.choices:
        return quoted(plain)
    if "null" in types and plain in ("null", "None"):
        return "null"
    if "boolean" in types and plain.lower() in ("true", "false"):
        return plain.lower()
    if (number := _NUMBER.fullmatch(plain)) and len(plain) <= LONGEST_NUMBER:
        whole = number[2] is None and number[3] is None
        if "number" in types or ("integer" in types and whole):
            return plain
    opening = {"object": "{", "array": "["}
    if any(kind in types and plain.startswith(opening[kind]) for kind in opening):
        if _is_json(plain):
            return plain
        if (value := _python(plain)) is not None:
            return value
    return quoted(text)


def json_of_python(text: str) -> str:
    """A literal of Python, or of JSON; anything else is a string."""
    value = _python(text)
    return quoted(text.strip()) if value is None else value


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are Python's


def _python(text: str) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not have
            tree = ast.parse(text.strip(), mode="eval")
        return _dumped(_value(tree.body))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {str(_value(key) if key else None): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError(node)
