"""Structured output as clients ask for it, in vLLM's shape and OpenAI's, and the grammar that is meant.

Whatever can be seen without compiling is refused here, with the field at fault.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from quire_engine.core.request import Grammar, GrammarKind
from quire_engine.errors import RequestRejected
from quire_engine.grammars.schema import Unsupported, normalised

__all__ = ["StructuredOutputs", "StructuredOutputsParams", "grammar_of", "structured_of"]

LONGEST = 1 << 18  # characters of a schema, or whatever it is
MOST_CHOICES = 10_000
ANY_OBJECT = {"type": "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputs:
    """Exactly one of the fields says what the answer must match."""

    json: Mapping[str, Any] | str | bool | None = None  # a schema; True: any object
    regex: str | None = None  # of the whole answer
    choice: Sequence[str] | None = None
    grammar: str | None = None  # EBNF, whose first rule is `root`
    json_object: bool | None = None
    structural_tag: str | None = None  # JSON
    param: str = field(default="structured_outputs", repr=False, compare=False)  # the field of the request, for errors

    def __post_init__(self) -> None:
        given = [name for name in ASKED if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            what = f"has {' and '.join(given)}" if given else "asks for nothing"
            raise self._refused(f"{what}: give exactly one of {', '.join(ASKED)}")
        for name in ("regex", "grammar", "structural_tag"):
            self._check_text(name, getattr(self, name))
        if self.json_object not in (None, False, True):
            raise self._refused(f"json_object is {self.json_object!r}, and must be true or false")
        if self.choice is not None:
            if isinstance(self.choice, str | bytes | Mapping) or not isinstance(self.choice, Sequence):
                raise self._refused("choice must be a list of texts")
            if not 0 < len(self.choice) <= MOST_CHOICES:
                raise self._refused(f"choice has {len(self.choice)} texts, and must have 1 to {MOST_CHOICES}")
            for text in self.choice:
                self._check_text("choice", text if text is not None else 0)

    def _check_text(self, name: str, text: object) -> None:
        if text is None:
            return
        if not isinstance(text, str) or not text:
            raise self._refused(f"{name}: {str(text)[:80]!r} is no text, or an empty one")
        if len(text) > LONGEST:
            raise self._refused(f"{name} has {len(text)} characters, and at most {LONGEST} are taken")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self._refused(f"{name}: half of a surrogate pair is no text") from None

    def _refused(self, message: str) -> RequestRejected:
        return RequestRejected(f"{self.param}: {message}", self.param)


ASKED = tuple(each.name for each in fields(StructuredOutputs) if each.name != "param")


StructuredOutputsParams = StructuredOutputs  # vLLM's name


def grammar_of(asked: StructuredOutputs) -> Grammar:
    """RequestRejected for what can be seen to be wrong already."""
    try:
        kind, text = _kind_and_text(asked)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestRejected(f"{asked.param}: {reason}", asked.param) from None
    if len(text) > LONGEST:
        raise RequestRejected(
            f"{asked.param}: this comes to {len(text)} characters, and at most {LONGEST} are taken", asked.param
        )
    return Grammar(kind=kind, text=text, param=asked.param)


def structured_of(
    response_format: dict[str, Any] | None, structured_outputs: dict[str, Any] | None
) -> StructuredOutputs | None:
    """What a request's two fields ask for: OpenAI's, and vLLM's of the same name. None: any text."""
    ours = None if structured_outputs is None else _from_vllm(structured_outputs)
    theirs = None if response_format is None else _from_openai(response_format)
    if ours and theirs:
        raise RequestRejected(
            "response_format and structured_outputs both say what the answer must match: give one of them",
            "response_format",
        )
    return ours or theirs


def _from_vllm(asked: dict[str, Any]) -> StructuredOutputs:
    if not isinstance(asked, dict):
        raise RequestRejected("structured_outputs must be an object", "structured_outputs")
    if unknown := [str(name) for name, value in asked.items() if name not in ASKED and value not in (None, False)]:
        raise RequestRejected(
            f"structured_outputs has {', '.join(unknown)}, and can have {', '.join(ASKED)}", "structured_outputs"
        )
    return StructuredOutputs(**{name: value for name, value in asked.items() if name in ASKED})


def _from_openai(asked: dict[str, Any]) -> StructuredOutputs | None:
    param = "response_format"
    kind = asked.get("type") if isinstance(asked, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputs(json_object=True, param=param)
    if kind == "structural_tag":
        return StructuredOutputs(structural_tag=_dumped(asked, param), param=param)
    if kind != "json_schema":
        raise RequestRejected(
            "response_format must be an object whose type is text, json_object, json_schema or structural_tag", param
        )
    wrapped = asked.get("json_schema")
    if not isinstance(wrapped, dict) or not isinstance(wrapped.get("schema"), dict):
        raise RequestRejected(
            "response_format: of type json_schema, it must have a json_schema with a name and a schema, each an object",
            param,
        )
    if not isinstance(wrapped.get("strict"), bool | None):
        raise RequestRejected("response_format: json_schema.strict must be true or false", param)
    return StructuredOutputs(json=wrapped["schema"], param=param)


def _kind_and_text(asked: StructuredOutputs) -> tuple[GrammarKind, str]:
    if asked.regex is not None:
        return GrammarKind.REGEX, asked.regex
    if asked.grammar is not None:
        return GrammarKind.EBNF, asked.grammar
    if asked.choice is not None:
        return GrammarKind.EBNF, "root ::= " + " | ".join(f'"{_escaped(text)}"' for text in dict.fromkeys(asked.choice))
    if asked.structural_tag is not None:
        return GrammarKind.STRUCTURAL_TAG, _dumped(_tags(_loaded(asked.structural_tag)), asked.param)
    schema = ANY_OBJECT if asked.json_object or asked.json is True else asked.json
    if isinstance(schema, str):
        if len(schema) > LONGEST:
            raise ValueError(f"json has {len(schema)} characters, and at most {LONGEST} are taken")
        schema = _loaded(schema)
    return GrammarKind.JSON, _dumped(normalised(schema), asked.param)


def _tags(asked: Any) -> Any:
    """vLLM's older shape becomes the newer one; the schemas in it are normalised."""
    if isinstance(asked, dict) and "structures" in asked and "format" not in asked:
        if not isinstance(asked["structures"], list) or not all(isinstance(tag, dict) for tag in asked["structures"]):
            raise ValueError("structures must be a list of objects with begin, schema and end")
        tags = [
            {
                "type": "tag",
                "begin": tag.get("begin"),
                "content": {"type": "json_schema", "json_schema": tag.get("schema")},
                "end": tag.get("end"),
            }
            for tag in asked["structures"]
        ]
        asked = {"format": {"type": "triggered_tags", "triggers": asked.get("triggers"), "tags": tags}}
    if not isinstance(asked, dict) or not isinstance(asked.get("format"), dict):
        raise ValueError("structural_tag must be an object with a format")
    return {"type": "structural_tag", "format": _with_schemas(asked["format"])}


def _with_schemas(part: Any) -> Any:
    if isinstance(part, list):
        return [_with_schemas(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {name: normalised(value) if name == "json_schema" else _with_schemas(value) for name, value in part.items()}


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except ValueError as error:
        raise Unsupported(f"it is no JSON: {error}") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _dumped(value: Any, param: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRejected(f"{param}: it cannot be written as JSON: {error}", param) from None


def _escaped(text: str) -> str:
    """As EBNF spells it between quotes."""
    return "".join(
        "\\" + char if char in '"\\' else f"\\u{ord(char):04x}" if ord(char) < 32 or ord(char) == 127 else char
        for char in text
    )
