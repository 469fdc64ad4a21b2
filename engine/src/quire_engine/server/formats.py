"""How the served model writes calls and reasoning: by its chat template, unless a flag says otherwise."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from quire_api.errors import nearest
from quire_engine.errors import ConfigFailure
from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS, ReasoningFormat, ToolFormat, detect
from quire_engine.messages.parser import MessageParser

__all__ = ["Formats", "choose_formats"]

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Formats:
    tools: ToolFormat | None
    reasoning: ReasoningFormat | None


def choose_formats(
    tool_call_parser: str, reasoning_parser: str, template: str | None, special_tokens: Collection[str]
) -> Formats:
    tools, reasoning = detect(template, special_tokens)
    formats = Formats(
        _named("--tool-call-parser", tool_call_parser, TOOL_FORMATS, tools),
        _named("--reasoning-parser", reasoning_parser, REASONING_FORMATS, reasoning),
    )
    MessageParser(formats.tools, formats.reasoning)  # ConfigFailure if they do not go together
    return formats


def _named(flag: str, name: str, table: Mapping[str, Row], detected: Row | None) -> Row | None:
    if name in ("auto", "none"):
        return detected if name == "auto" else None
    if name not in table:
        raise ConfigFailure(f"{flag} {name}: no such format; {nearest(name, [*table, 'auto', 'none'])}")
    return table[name]
