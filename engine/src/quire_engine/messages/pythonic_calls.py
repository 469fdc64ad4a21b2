"""Calls written as Python: `[f(a=1, b="x"), g()]`.

A list is taken for calls as soon as it has a name, a bracket, and a keyword or the other bracket: neither `[1, 2]` nor
a link in Markdown has. Strings stream as they come, any other value when it is complete.
"""

import re

from quire_engine.messages.reader import Reader, Say, Wait
from quire_engine.messages.values import escaped, json_of_python, quoted
from quire_engine.messages.writer import Writer

__all__ = ["read_list"]

QUOTES = "\"'"
PLAIN = re.compile(r"""[^"'\\]+""")
ESCAPES = {c: c for c in "\\'\""} | dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)) | {"\n": "", "": "\\"}
LENGTHS = {"x": 2, "u": 4, "U": 8}
OCTAL = "01234567"
HEXADECIMAL = "0123456789abcdefABCDEF"


def read_list(reader: Reader, writer: Writer) -> Wait[bool]:
    """Whether there was a call."""
    yield from reader.skip_space()
    if not (yield from reader.one_of(("[",))) or not (yield from _read_call(reader, writer)):
        return False
    while True:
        yield from reader.skip_space()
        end = yield from reader.one_of((",", "]"))
        if end == "]":
            reader.settle()
        if end != "," or not (yield from _read_call(reader, writer)):
            reader.back()
            return True


def _read_call(reader: Reader, writer: Writer) -> Wait[bool]:
    yield from reader.skip_space()
    name = yield from reader.name()
    if not name or not (yield from reader.one_of(("(",))):
        return False
    yield from reader.skip_space()
    if (yield from reader.one_of((")",))):
        say = writer.call(name)
        say("{}")
        reader.settle()
        return True
    key = yield from _read_key(reader)
    if key is None:
        return False
    say = writer.call(name)
    lead = "{"
    while key is not None:
        reader.settle()
        say(f"{lead}{quoted(key)}: ")
        lead = ", "
        if not (yield from _read_value(reader, say)):
            return True
        reader.settle()
        if (yield from reader.one_of((")",))):
            reader.settle()
            break
        yield from reader.one_of((",",))
        yield from reader.skip_space()
        if (yield from reader.one_of((")",))):  # after a last comma
            reader.settle()
            break
        key = yield from _read_key(reader)
        if key is None and reader.ended and reader.at == len(reader.text):
            reader.settle()
            return True
    reader.back()
    say("}")
    return True


def _read_key(reader: Reader) -> Wait[str | None]:
    key = yield from reader.name()
    yield from reader.skip_space()
    if not key or not (yield from reader.one_of(("=",))):
        return None
    yield from reader.skip_space()
    return key


def _read_value(reader: Reader, say: Say) -> Wait[bool]:
    """Say a value as JSON, and stop before the comma or bracket after it.

    False: it was cut off, and comes as far as it was written.
    """
    quote = yield from reader.peek()
    if quote and quote in QUOTES:
        return (yield from _read_string(reader, say))
    start = reader.at
    depth = 0
    while True:
        char = yield from reader.peek()
        if not char:
            say(reader.text[start : reader.at])
            reader.settle()
            return False
        if depth == 0 and char in ",)":
            break
        if char in QUOTES:
            yield from _string_text(reader, _nothing)
            continue
        depth += (char in "([{") - (char in ")]}")
        reader.at += 1
    say(json_of_python(reader.text[start : reader.at]))
    return True


def _read_string(reader: Reader, say: Say) -> Wait[bool]:
    """A string, or several side by side, which are one. What else follows is no value, and no part of the call."""
    say('"')
    while (quote := (yield from reader.peek())) and quote in QUOTES:
        if not (yield from _string_text(reader, reader.settling(say))):
            return False
        reader.settle()
        yield from reader.skip_space()
    say('"')
    reader.settle()
    return True


def _string_text(reader: Reader, say: Say) -> Wait[bool]:
    """Say the inside of a string as it comes; whether it was closed."""
    quote = yield from reader.peek()
    reader.at += 1
    if (yield from reader.peek()) == quote:
        reader.at += 1
        if (yield from reader.peek()) != quote:
            return True  # the empty string
        reader.at += 1
        quote *= 3
    while char := (yield from reader.peek()):
        start = reader.at
        if char == "\\":
            reader.at += 1
            say((yield from _escape(reader)))
        elif char != quote[0]:
            found = PLAIN.match(reader.text, start)
            reader.at = found.end() if found else start + 1
            say(escaped(reader.text[start : reader.at]))
        elif (yield from reader.one_of((quote,))):
            return True
        elif (yield from reader.peek()):
            reader.at += 1
            say(escaped(char))
    return False


def _escape(reader: Reader) -> Wait[str]:
    """What follows a backslash, as the inside of a JSON string. What is no escape stands for itself."""
    kind = yield from reader.peek()
    if kind in ESCAPES:
        reader.at += len(kind)
        return escaped(ESCAPES[kind])
    if kind in OCTAL:
        return escaped(chr(int((yield from _digits(reader, OCTAL, 3)), 8)))
    if kind not in LENGTHS:
        return escaped("\\")
    reader.at += 1
    digits = yield from _digits(reader, HEXADECIMAL, LENGTHS[kind])
    if len(digits) < LENGTHS[kind] or int(digits, 16) > 0x10FFFF:
        return escaped(f"\\{kind}{digits}")
    return escaped(chr(int(digits, 16)))


def _digits(reader: Reader, allowed: str, most: int) -> Wait[str]:
    digits = ""
    while len(digits) < most and (digit := (yield from reader.peek())) and digit in allowed:
        digits += digit
        reader.at += 1
    return digits


def _nothing(_: str) -> None:
    pass
