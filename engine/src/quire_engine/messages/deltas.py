"""What a parser says while a model writes, and the message that it adds up to.

Calls are numbered 0, 1, 2 in the order in which they begin. The texts of one kind, joined, are the message:
in how many deltas they came has no meaning.
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Arguments", "Call", "CallStarted", "Content", "Delta", "Message", "Reasoning", "merged", "message_of"]


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStarted:
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """Some more of the JSON text of a call that has started."""

    index: int
    text: str


Delta = Reasoning | Content | CallStarted | Arguments


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str  # JSON; only of a call that was cut off, the beginning of it


@dataclass(frozen=True, slots=True)
class Message:
    content: str | None
    reasoning: str | None
    calls: list[Call]


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """The same with fewer words: neighbours of one kind are joined."""
    result: list[Delta] = []
    for delta in deltas:
        match result[-1] if result else None, delta:
            case Content(before), Content(text):
                result[-1] = Content(before + text)
            case Reasoning(before), Reasoning(text):
                result[-1] = Reasoning(before + text)
            case Arguments(index, before), Arguments(same, text) if index == same:
                result[-1] = Arguments(index, before + text)
            case _:
                result.append(delta)
    return result


def message_of(deltas: Iterable[Delta]) -> Message:
    content: list[str] = []
    reasoning: list[str] = []
    names: list[str] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        match delta:
            case Content(text):
                content.append(text)
            case Reasoning(text):
                reasoning.append(text)
            case CallStarted(_, name):
                names.append(name)
                arguments.append([])
            case Arguments(index, text):
                arguments[index].append(text)
    calls = [Call(name, "".join(parts)) for name, parts in zip(names, arguments, strict=True)]
    return Message("".join(content) or None, "".join(reasoning) or None, calls)
