"""The grammars of messages: what a model may write when it has to call a function, or has to reason before its answer.

`tool_grammar` returns a structural tag of xgrammar's, as JSON; this module makes the text, the engine compiles it. A
grammar speaks of text: to be able to write a marker that is a special token, the vocabulary that xgrammar is given must
show special tokens by their names.

Where a format has line breaks between its markers, the model may leave them out, for templates differ. The end of output
is not part of a grammar.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quire_engine.errors import RequestRejected
from quire_engine.messages.formats import ReasoningFormat, ToolFormat, Writing
from quire_engine.messages.reader import NAME

__all__ = ["MOST_WHITESPACE", "NoGrammar", "ToolSchema", "after_reasoning", "tool_grammar"]

MOST_WHITESPACE = 40  # characters in a row within JSON, so that no model fills its output with them
REQUIRED = "required"

Part = dict[str, Any]


class NoGrammar(RequestRejected):
    """Calls in this format cannot be forced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSchema:
    name: str
    parameters: Mapping[str, Any] | None = None  # JSON schema; without, any object
    strict: bool = True  # arguments follow the schema; if not, they are any object


def tool_grammar(
    row: ToolFormat,
    tools: Sequence[ToolSchema],
    choice: Literal["required"] | str,
    parallel: bool,
    *,
    reasoning: ReasoningFormat | None = None,
    in_reasoning: bool = False,
) -> str:
    """At least one call of any of the tools, or exactly one of the tool that `choice` names.

    With `reasoning` the model may think first; with `in_reasoning` the prompt has begun it, and the model has to end it.
    """
    if not row.writings:
        raise NoGrammar(
            f"calls cannot be forced in the format {row.name!r}: tool_choice can be 'auto' or 'none'", "tool_choice"
        )
    for tool in tools:
        if not tool.name or not NAME.fullmatch(tool.name):
            raise RequestRejected(f"{tool.name!r} is no name for a function", "tools")
    chosen = tools if choice == REQUIRED else [tool for tool in tools if tool.name == choice]
    if not chosen:
        raise RequestRejected(
            f"there is no function {choice!r} among the tools" if tools else "there are no tools", "tool_choice"
        )
    several = parallel and choice == REQUIRED
    calls = _either([_calls(writing, chosen, several) for writing in row.writings])
    return json.dumps({"type": "structural_tag", "format": _sequence([*_thoughts(reasoning, in_reasoning), calls])})


def after_reasoning(row: ReasoningFormat, in_reasoning: bool, answer: Part) -> str:
    """The structural tag of an answer, a format of xgrammar's, before which the model may reason."""
    content = _text("<|channel|>final<|message|>") if row.channels else []
    parts = [*_thoughts(row, in_reasoning, _text("\n\n")), *content, answer]
    return json.dumps({"type": "structural_tag", "format": _sequence(parts)})


def _calls(writing: Writing, tools: Sequence[ToolSchema], several: bool) -> Part:
    one = _either([_call(writing, tool) for tool in tools])
    parts = [*_text(writing.begin), one]
    if several and writing.between is not None:
        parts.append({"type": "star", "content": _sequence([*_text(writing.between), one])})
    return _sequence([*parts, *_text(writing.end)])


def _call(writing: Writing, tool: ToolSchema) -> Part:
    schema = tool.parameters if tool.strict and tool.parameters else {"type": "object"}
    arguments: Part = {"type": "json_schema", "json_schema": dict(schema), "max_whitespace_cnt": MOST_WHITESPACE}
    if writing.style != "json":
        arguments |= {"style": writing.style, "excludes": list(writing.excludes)}
    return _sequence(
        [*_text(writing.before_name + tool.name + writing.after_name), arguments, *_text(writing.after_arguments)]
    )


def _thoughts(row: ReasoningFormat | None, in_reasoning: bool, after: Sequence[Part] = ()) -> list[Part]:
    if row is None:
        return []
    thoughts = {"type": "any_text"}
    if in_reasoning:
        return [
            {"type": "tag", "begin": "", "content": thoughts, "end": list(row.closes)},
            *_text(row.after_close),
            *after,
        ]
    tags: list[Part] = [
        {"type": "tag", "begin": opening, "content": thoughts, "end": list(row.closes)} for opening in row.opens
    ]
    return [{"type": "optional", "content": _sequence([_either(tags), *_text(row.after_close), *after])}]


def _text(text: str) -> list[Part]:
    """The text, with each of its line breaks left to the model."""
    parts: list[Part] = []
    for n, line in enumerate(text.split("\n")):
        if n:
            parts.append({"type": "optional", "content": {"type": "const_string", "value": "\n"}})
        if line:
            parts.append({"type": "const_string", "value": line})
    return parts


def _sequence(parts: list[Part]) -> Part:
    return parts[0] if len(parts) == 1 else {"type": "sequence", "elements": parts}


def _either(parts: list[Part]) -> Part:
    return parts[0] if len(parts) == 1 else {"type": "or", "elements": parts}
