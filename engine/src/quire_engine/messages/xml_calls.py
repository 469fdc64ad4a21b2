"""Calls written as tags, as Qwen3-Coder does:

    <tool_call>
    <function=name>
    <parameter=key>
    value
    </parameter>
    </function>
    </tool_call>

One line break after the opening tag of a value and one before its closing tag are layout. The schema of
the function types the values: a string streams as it comes, anything else when it is complete.
"""

from collections.abc import Mapping
from typing import Any

from quire_engine.messages.reader import Reader, Say, Wait
from quire_engine.messages.values import Parameter, escaped, json_of_text, parameter_of, quoted
from quire_engine.messages.writer import Writer

__all__ = ["read_function"]

VALUE_ENDS = ("\n</parameter>", "</parameter>")


def read_function(reader: Reader, writer: Writer, schemas: Mapping[str, Any]) -> Wait[bool]:
    """What follows `<function=`. Whether it was a call."""
    name = yield from reader.name()
    if not name or not (yield from reader.one_of((">",))):
        return False
    say = writer.call(name)
    reader.settle()
    lead = "{"
    while (key := (yield from _read_key(reader))) is not None:
        reader.settle()
        say(f"{lead}{quoted(key)}: ")
        lead = ", "
        if not (yield from _read_value(reader, say, parameter_of(schemas.get(name), key))):
            return True
    cut_off = reader.ended and reader.at == len(reader.text)
    reader.leave()
    if not cut_off:
        say("{}" if lead == "{" else "}")
    return True


def _read_key(reader: Reader) -> Wait[str | None]:
    yield from reader.skip_space()
    if not (yield from reader.one_of(("<parameter=",))):
        return None
    key = yield from reader.name()
    if not key or not (yield from reader.one_of((">",))):
        return None
    return key


def _read_value(reader: Reader, say: Say, parameter: Parameter) -> Wait[bool]:
    """Say a value as JSON; whether it was complete. One that was cut off comes as far as it was written."""
    if (yield from reader.one_of(("\r\n", "\n"))):
        reader.settle()
    if parameter.is_any_string:
        say('"')
        closed = yield from reader.until(VALUE_ENDS, lambda text: say(escaped(text)))
        say('"' if closed else "")
    else:
        pieces: list[str] = []
        closed = yield from reader.until(VALUE_ENDS, pieces.append)
        text = "".join(pieces)
        say(json_of_text(text, parameter) if closed else text)
    reader.settle()
    return closed is not None
