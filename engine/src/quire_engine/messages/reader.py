"""Text that comes piece by piece, read by generators that wait for more of it.

    text   | looked at           | not yet
           0 ................... at .......... len(text)

`settle()` forgets what was looked at: it has been said. `back()` makes it unread: it was not what it seemed. A generator
yields when only more text can tell how to go on, and never because of where a piece ends: that is why any
cut of the same text is read the same way.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

__all__ = ["NAME", "SPACE", "Reader", "Say", "Wait"]

T = TypeVar("T")
Wait = Generator[None, None, T]
Say = Callable[[str], None]

SPACE = " \t\r\n"
NAME = re.compile(
    r"[^\s<>\[\]{}()\"'`=,;|｜\\\x00-\x1f\ud800-\udfff]*"
)  # of a function or parameter, whatever the language


class Reader:
    __slots__ = ("at", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False  # no more text will come

    def settle(self) -> None:
        self.text, self.at = self.text[self.at :], 0

    def settling(self, say: Say) -> Say:
        """Say what was looked at, and be done with it."""

        def said(text: str) -> None:
            say(text)
            self.settle()

        return said

    def back(self) -> None:
        self.at = 0

    def leave(self) -> None:
        """The rest of a call is not as it should be: it is read as something else, unless the end of all text cut it off."""
        if self.ended and self.at == len(self.text):
            self.settle()
        self.back()

    def peek(self) -> Wait[str]:
        """The next character; none at the end."""
        while self.at >= len(self.text) and not self.ended:
            yield
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> Wait[None]:
        while (yield from self.peek()) and self.text[self.at] in SPACE:
            self.at += 1

    def one_of(self, options: Sequence[str]) -> Wait[str | None]:
        """Read that of the options which is next, if one is. No option may begin with another."""
        longest = max(map(len, options), default=0)
        while True:
            rest = self.text[self.at : self.at + longest]
            for option in options:
                if rest.startswith(option):
                    self.at += len(option)
                    return option
            if not any(option.startswith(rest) for option in options):
                return None
            if self.ended:
                self.at += len(rest)
                return None
            yield

    def name(self) -> Wait[str]:
        """As many characters as a name may have: none, if it is no name."""
        start = self.at
        while True:
            found = NAME.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or self.ended:
                return self.text[start : self.at]
            yield

    def until(self, markers: Sequence[str], say: Say) -> Wait[str | None]:
        """Say and settle what precedes the first marker, which is looked at; None: the text ended without.

        No marker may lie within another, unless as its end.
        """
        while True:
            found = min(((at, marker) for marker in markers if (at := self.text.find(marker)) >= 0), default=None)
            if found:
                before, marker = found
            else:
                before, marker = len(self.text) - (0 if self.ended else self._held_back(markers)), ""
            if before:
                say(self.text[:before])
                self.at = before
                self.settle()
            if found:
                self.at = len(marker)
                return marker
            if self.ended:
                return None
            yield

    def _held_back(self, markers: Sequence[str]) -> int:
        """How many last characters may begin a marker."""
        longest = max(map(len, markers), default=1) - 1
        for length in range(min(longest, len(self.text)), 0, -1):
            tail = self.text[-length:]
            if any(marker.startswith(tail) for marker in markers):
                return length
        return 0
