"""Collects deltas, and decides about whitespace.

Whitespace that touches a marker belongs to the marker: between content and a call, around and between calls, inside the
tags of reasoning and after them. All of it is dropped, all other is kept. Therefore whitespace waits here until it is
known what follows.
"""

from quire_engine.messages.deltas import Arguments, CallStarted, Content, Delta, Reasoning, merged
from quire_engine.messages.reader import SPACE, Say

__all__ = ["Writer"]


class Writer:
    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._calls = 0
        self._space: list[str] = []
        self._kind: type[Content] | type[Reasoning] = Content  # of the space that waits
        self._touches_marker = False
        self._joint = ""
        self._said: set[type] = set()

    def content(self, text: str) -> None:
        self._say(Content, text)

    def reasoning(self, text: str) -> None:
        self._say(Reasoning, text)

    def marker(self, joint: str = "") -> None:
        """Something that is not shown. `joint` comes before the next text if there was already some of its kind."""
        self._space, self._touches_marker, self._joint = [], True, joint

    def call(self, name: str) -> Say:
        """Begin a call; what is returned says more of its arguments."""
        index = self._calls
        self._calls += 1
        self.marker()
        self._deltas.append(CallStarted(index, name))

        def arguments(text: str) -> None:
            if text:
                self._deltas.append(Arguments(index, text))

        return arguments

    def end(self) -> None:
        if self._space:
            self._deltas.append(self._kind("".join(self._space)))
            self._space = []

    def take(self) -> list[Delta]:
        deltas, self._deltas = merged(self._deltas), []
        return deltas

    def _say(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        if self._touches_marker:
            text = text.lstrip(SPACE)
        shown = text.rstrip(SPACE)
        if shown:
            joint = self._joint if kind in self._said else ""
            self._deltas.append(kind("".join((joint, *self._space, shown))))
            self._said.add(kind)
            self._space, self._touches_marker, self._joint = [], False, ""
        if space := text[len(shown) :]:
            self._kind = kind
            self._space.append(space)
