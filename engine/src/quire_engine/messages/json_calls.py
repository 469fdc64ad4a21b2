"""Calls whose arguments are JSON: they pass through as they were written, as they come.

    {"name": "f", "arguments": {...}}    an object, or several: in a list, or one after the other
    f <marker> {...}                     a name, a marker, an object

Where a value ends is told by its brackets and strings alone, so that broken JSON, too, reaches the client as it was
written. A `<` outside of strings ends it as well: markers begin with that, and JSON has none.
"""

import json
import re
from collections.abc import Sequence

from quire_engine.messages.reader import Reader, Say, Wait
from quire_engine.messages.writer import Writer

__all__ = ["read_body", "read_named", "read_objects"]

ARGUMENTS = ("arguments", "parameters")
KEYS = (*ARGUMENTS, "name", "type", "id")  # with any other, what nothing announced as a call is none
NOT_IN_NAMES = re.compile(r"[\s\x00-\x1f\ud800-\udfff]")
IN_STRING = re.compile(r'["\\]')
IN_BRACKETS = re.compile(r'["{}\[\]<]')
AFTER_SCALAR = re.compile(r"[,}\]<\s]")


class _Extent:
    """Where a JSON value ends, however its text is cut."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_scalar", "_started", "done")

    def __init__(self) -> None:
        self._depth = 0
        self._started = self._scalar = self._in_string = self._escaped = self.done = False

    def feed(self, text: str, at: int) -> int:
        """The index in `text` up to which it belongs to the value."""
        while at < len(text) and not self.done:
            at = self._step(text, at)
        return at

    def _step(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        if not self._started:
            self._started, self._scalar = True, text[at] not in '"{['
        pattern = IN_STRING if self._in_string else AFTER_SCALAR if self._scalar else IN_BRACKETS
        found = pattern.search(text, at)
        if found is None:
            return len(text)
        if self._scalar or found[0] == "<":
            self.done = True
            return found.start()
        if found[0] == "\\":
            self._escaped = True
        elif found[0] == '"':
            self._in_string = not self._in_string
        else:
            self._depth += 1 if found[0] in "{[" else -1
        self.done = self._depth <= 0 and not self._in_string
        return found.end()


def read_value(reader: Reader, say: Say) -> Wait[bool]:
    """Say a JSON value piece by piece; whether there was any of it."""
    extent = _Extent()
    some = False
    while True:
        start, reader.at = reader.at, extent.feed(reader.text, reader.at)
        if piece := reader.text[start : reader.at]:
            some = True
            say(piece)
        if extent.done or reader.ended:
            return some
        yield


def _read_string(reader: Reader) -> Wait[str | None]:
    pieces: list[str] = []
    if (yield from reader.peek()) != '"':
        return None
    yield from read_value(reader, pieces.append)
    try:
        return str(json.loads("".join(pieces), strict=False))
    except ValueError:  # it was cut off, or has escapes that there are not
        return None


def _read_key(reader: Reader) -> Wait[str | None]:
    yield from reader.skip_space()
    key = yield from _read_string(reader)
    yield from reader.skip_space()
    if key is None or not (yield from reader.one_of((":",))):
        return None
    yield from reader.skip_space()
    return key


def read_objects(reader: Reader, writer: Writer, between: str | None, *, sure: bool) -> Wait[bool]:
    """One object or a list of them; with `between`, more may follow without a marker. Whether there was a call.

    `sure`: a marker said that calls follow. If not, an object is one only if it has a name and arguments.
    """
    yield from reader.skip_space()
    listed = yield from reader.one_of(("[",))
    if listed:
        between = ","
        yield from reader.skip_space()
    if not (yield from _read_object(reader, writer, sure=sure)):
        return False
    while between is not None:
        yield from reader.skip_space()
        separated = yield from reader.one_of((between,))
        yield from reader.skip_space()
        if (listed and not separated) or not (yield from _read_object(reader, writer, sure=sure)):
            reader.back()
            break
    if listed:
        yield from reader.skip_space()
        if (yield from reader.one_of(("]",))):
            reader.settle()
        reader.back()
    return True


def _read_object(reader: Reader, writer: Writer, *, sure: bool) -> Wait[bool]:
    name: str | None = None
    held: list[str] = []  # arguments that came before the name
    say: Say | None = None
    given = False
    if not (yield from reader.one_of(("{",))):
        return False
    while True:
        key = yield from _read_key(reader)
        if key == "name" and name is None:
            name = yield from _read_string(reader)
            if not name or NOT_IN_NAMES.search(name):
                return False
            if sure or given:
                say = _begin(reader, writer, name, held)
        elif key in ARGUMENTS and not given:
            if name is not None and say is None:
                say = _begin(reader, writer, name, held)
            given = yield from read_value(reader, reader.settling(say) if say else held.append)
        elif key is not None and (sure or key in KEYS):
            yield from read_value(reader, _nothing)
        elif say is None:
            return False
        end = yield from _read_end(reader, key)
        if end == ",":
            continue
        if say is None:
            return False
        if end and not given:
            say("{}")
        if end:
            reader.settle()
        reader.leave()
        return True


def _read_end(reader: Reader, key: str | None) -> Wait[str | None]:
    """What ends a member: a comma if there are more, or the brace. None: neither."""
    yield from reader.skip_space()
    end = (yield from reader.one_of((",", "}"))) if key is not None else None
    if end == ",":
        yield from reader.skip_space()
        end = (yield from reader.one_of(("}",))) or end
    return end


def _begin(reader: Reader, writer: Writer, name: str, held: list[str]) -> Say:
    say = writer.call(name)
    say("".join(held))
    reader.settle()
    return say


def _nothing(_: str) -> None:
    pass


def read_named(reader: Reader, writer: Writer, name_ends: Sequence[str]) -> Wait[bool]:
    """A name, the marker that ends it (not needed before a brace), and JSON. Between the two Mistral may write an id."""
    yield from reader.skip_space()
    name = yield from reader.name()
    yield from reader.skip_space()
    marker = yield from reader.one_of(name_ends)
    if marker == "[CALL_ID]":
        yield from reader.name()
        marker = yield from reader.one_of(name_ends)
    if not name or not (marker or (yield from reader.peek()) == "{"):
        return False
    yield from read_body(reader, writer, name)
    return True


def read_body(reader: Reader, writer: Writer, name: str) -> Wait[None]:
    """The arguments alone; none at all are an empty object."""
    say = writer.call(name)
    reader.settle()
    yield from reader.skip_space()
    reader.settle()
    if not (yield from read_value(reader, reader.settling(say))) and not reader.ended:
        say("{}")
