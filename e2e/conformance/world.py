"""What the scenarios need of a place where Quire runs. One implementation for each backend."""

import time
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Streams", "World", "condition", "eventually"]

Resource = dict[str, Any]


class Streams(Protocol):
    """Answers that are being streamed, over and over."""

    def begun(self) -> bool:
        """Has every one of them begun?"""
        ...

    def finish(self) -> list[str]:
        """Let those that are open come to their end; what went wrong, a line each."""
        ...


class World(Protocol):
    name: str

    def apply(self, resource: Resource) -> None: ...

    def scale(self, name: str, replicas: int) -> None: ...

    def delete(self, name: str) -> None: ...

    def resource(self, name: str) -> Resource | None:
        """With its status; None when it is gone."""
        ...

    def engines(self, name: str) -> list[str]:
        """Of every engine that there is, those which are ending included, a name that no other has or will have."""
        ...

    def signal(self, name: str, number: int) -> None:
        """To the process that computes, of one engine."""
        ...

    def answer(self, model: str, question: str) -> str: ...

    def stream(self, model: str, count: int) -> Streams:
        """So many clients, each of which streams one answer after the other."""
        ...


def condition(world: World, name: str, kind: str) -> dict[str, Any]:
    """Of the generation that was applied last; empty when there is none."""
    resource = world.resource(name) or {}
    status = resource.get("status", {})
    if status.get("observedGeneration") != resource.get("metadata", {}).get("generation"):
        return {}
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def eventually(what: str, holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)
