"""Harmony, the format of gpt-oss: a sequence of messages, each with a header.

    <|start|>assistant<|channel|>analysis<|message|>...<|end|>                                          reasoning
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{...}<|call|>    a call
    <|start|>assistant<|channel|>final<|message|>...<|return|>                                          content

The prompt ends with `<|start|>assistant`, so that the first header lacks that. Commentary to nobody is
content, and so is what is said to a tool that is no function. Texts of several messages of one kind are joined with a
line break.
"""

import re

from quire_engine.messages.json_calls import read_body
from quire_engine.messages.reader import Reader, Wait
from quire_engine.messages.writer import Writer

__all__ = ["read_channels"]

HEADS = ("<|start|>", "<|channel|>")
ENDS = ("<|end|>", "<|return|>", "<|call|>")
IN_HEADER = ("<|message|>", "<|channel|>", "<|constrain|>")
LONGEST_HEADER = 300  # characters
HEADER = re.compile(
    r"(?:<\|start\|>\s*assistant)?(?:\s*to=(?P<before>[^\s<]+))?"
    r"(?:\s*<\|channel\|>\s*(?P<channel>analysis|commentary|final))?(?:\s*to=(?P<after>[^\s<]+))?"
    r"\s*(?:<\|constrain\|>)?\s*\w*\s*<\|message\|>"
)


def read_channels(reader: Reader, writer: Writer, *, calls: bool, reasoning: bool, in_reasoning: bool) -> Wait[None]:
    """A whole message. Without `calls`, they are content; without `reasoning`, that is, too."""
    say = writer.reasoning if in_reasoning and reasoning else writer.content
    marker = yield from reader.one_of((" to=", "to="))
    while True:
        if marker is None:
            reader.back()
            marker = yield from reader.until((*HEADS, *ENDS), say)
        if marker is None:
            return
        header = None if marker in ENDS else (yield from _read_header(reader))
        if header is None and marker not in ENDS:
            reader.back()
            reader.at = len(marker)
            say(marker)
        else:
            writer.marker("\n")
            channel, recipient = header or ("", "")
            say = writer.reasoning if reasoning and channel == "analysis" else writer.content
            to, _, function = recipient.partition(".")
            if calls and to == "functions" and function:
                yield from read_body(reader, writer, function)
        reader.settle()
        marker = None


def _read_header(reader: Reader) -> Wait[tuple[str, str] | None]:
    """Channel and recipient, each or both empty; nothing if it is no header."""
    while reader.at < LONGEST_HEADER:
        char = yield from reader.peek()
        if char != "<":
            reader.at += 1
            if not char:
                return None
            continue
        part = yield from reader.one_of(IN_HEADER)
        if part == "<|message|>":
            found = HEADER.fullmatch(reader.text, 0, reader.at)
            return (found["channel"] or "", found["before"] or found["after"] or "") if found else None
        if part is None:
            return None
    return None
