"""Reads a message while a model writes it: text in, deltas out.

    [reasoning] content, calls, content, calls ...

Laws: any cut of a text gives the same message; every character that is neither markup nor whitespace beside it comes out;
what only looked like a call comes out as content; a call that the end cuts off comes out as far as it was written; no
text raises.

Whether the prompt has opened reasoning already is the caller's to say (`ReasoningFormat.is_open`), for it decides what
the first character is. Which functions there are is no question here: a call of another one is a call.
"""

from collections.abc import Mapping
from typing import Any

from quire_engine.errors import ConfigFailure
from quire_engine.messages.channels import read_channels
from quire_engine.messages.deltas import Content, Delta
from quire_engine.messages.formats import ReasoningFormat, Syntax, ToolFormat
from quire_engine.messages.json_calls import read_named, read_objects
from quire_engine.messages.pythonic_calls import read_list
from quire_engine.messages.reader import Reader, Wait
from quire_engine.messages.writer import Writer
from quire_engine.messages.xml_calls import read_function

__all__ = ["MessageParser"]

SLICE = 4096  # characters at a time, so that a long text full of markers does not take the square of its length


class MessageParser:
    def __init__(
        self,
        tools: ToolFormat | None,
        reasoning: ReasoningFormat | None,
        *,
        schemas: Mapping[str, Any] | None = None,
        in_reasoning: bool = False,
    ) -> None:
        """`schemas`: of each function's parameters, by its name; they type values that are written without quotes."""
        self._channels = bool((tools and tools.syntax is Syntax.CHANNELS) or (reasoning and reasoning.channels))
        if self._channels and (
            (tools and tools.syntax is not Syntax.CHANNELS) or (reasoning and not reasoning.channels)
        ):
            raise ConfigFailure(
                "gpt_oss is the format of the whole message: no other goes with it, for calls or for reasoning"
            )
        self._reader = Reader()
        self._writer = Writer()
        self._schemas = schemas or {}
        self._plain = tools is None and reasoning is None
        self._steps = self._read(tools, reasoning, in_reasoning)
        next(self._steps, None)

    def feed(self, text: str) -> list[Delta]:
        """What is certain with this text."""
        if self._plain:
            return [Content(text)] if text else []
        for start in range(0, len(text), SLICE):
            self._reader.text += text[start : start + SLICE]
            next(self._steps, None)
        return self._writer.take()

    def finish(self) -> list[Delta]:
        """What was held back."""
        self._reader.ended = True
        next(self._steps, None)
        return self._writer.take()

    def _read(self, tools: ToolFormat | None, reasoning: ReasoningFormat | None, in_reasoning: bool) -> Wait[None]:
        yield
        if self._channels:
            yield from read_channels(
                self._reader,
                self._writer,
                calls=tools is not None,
                reasoning=reasoning is not None,
                in_reasoning=in_reasoning,
            )
        else:
            if reasoning:
                yield from self._read_reasoning(reasoning, in_reasoning)
            yield from self._read_content(tools)
        self._writer.end()

    def _read_reasoning(self, row: ReasoningFormat, in_reasoning: bool) -> Wait[None]:
        reader, writer = self._reader, self._writer
        yield from reader.skip_space()
        if (yield from reader.one_of(row.opens)):
            reader.settle()
            in_reasoning = True
        reader.back()
        if in_reasoning:
            writer.marker()
            if (yield from reader.until(row.closes, writer.reasoning)):
                reader.settle()
                writer.marker()

    def _read_content(self, row: ToolFormat | None) -> Wait[None]:
        reader, writer = self._reader, self._writer
        markers = (*row.blocks, *row.openers) if row else ()
        if row and row.bare:
            yield from reader.skip_space()
            if (yield from reader.peek()) == row.bare:
                yield from self._read_calls(row, None)
            reader.back()
        while (marker := (yield from reader.until(markers, writer.content))) is not None:
            if row and not (yield from self._read_calls(row, marker)):
                reader.back()
                reader.at = len(marker)
                reader.settling(writer.content)(marker)

    def _read_calls(self, row: ToolFormat, marker: str | None) -> Wait[bool]:
        """What a marker announces, or the beginning of a message may be. Whether it was a call."""
        reader = self._reader
        if marker in row.blocks:
            yield from reader.skip_space()
            if not (yield from reader.one_of(row.openers)):
                return False
        if not (yield from self._read_syntax(row, sure=marker is not None)):
            return False
        for closer in row.closers:
            yield from reader.skip_space()
            if (yield from reader.one_of((closer,))):
                reader.settle()
            reader.leave()
        return True

    def _read_syntax(self, row: ToolFormat, *, sure: bool) -> Wait[bool]:
        reader, writer = self._reader, self._writer
        if row.syntax is Syntax.XML:
            return (yield from read_function(reader, writer, self._schemas))
        if row.syntax is Syntax.PYTHONIC:
            return (yield from read_list(reader, writer))
        if row.syntax is Syntax.NAMED:
            yield from reader.skip_space()
            if (yield from reader.peek()) not in ("{", "["):
                return (yield from read_named(reader, writer, row.name_ends))
        return (yield from read_objects(reader, writer, row.between, sure=sure))
