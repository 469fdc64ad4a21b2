"""Which engines to start and which to let go, so that as many serve as did. Pure.

Surge first: a new one is started beside the old ones, and an old one goes when it is not needed any more for as many to
serve as are wanted. Without a device to spare the old one goes first. The order is fixed: who does not serve goes
before who does, the older revision before the newer, the higher number before the lower.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Member", "Steps", "next_steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An engine that was not told to end."""

    number: int
    current: bool  # of the wanted revision
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    start: tuple[int, ...] = ()  # numbers of new engines
    retire: tuple[int, ...] = ()


def next_steps(members: Sequence[Member], wanted: int, taken: frozenset[int], spare: bool = True) -> Steps:
    """`taken`: numbers of engines that still end. `spare`: there is room for one engine more than is wanted."""
    current = [m for m in members if m.current]
    old = [m for m in members if not m.current]
    retire = _last(current, len(current) - wanted)
    kept = [m for m in current if m not in retire]
    ready = sum(m.ready for m in kept)
    missing = wanted - len(kept)

    needed = max(0, wanted - ready)  # of the old ones that serve
    serving = [m for m in old if m.ready]
    if missing and not spare and serving and ready == len(kept) and len(kept) + len(serving) >= wanted:
        needed = min(needed, len(serving) - 1)  # one makes room; the next one when its successor serves
    retire += [m for m in old if not m.ready] + _last(serving, len(serving) - needed)
    staying = len(members) - len(retire)

    room = wanted + (1 if spare and old else 0) - staying
    numbers = _free(taken | {m.number for m in members}, max(0, min(missing, room)))
    return Steps(start=numbers, retire=tuple(sorted(m.number for m in retire)))


def _last(members: Sequence[Member], count: int) -> list[Member]:
    """Those which are missed least."""
    return sorted(members, key=lambda m: (m.ready, -m.number))[: max(0, count)]


def _free(taken: frozenset[int], count: int) -> tuple[int, ...]:
    numbers = (n for n in range(len(taken) + count) if n not in taken)
    return tuple(n for n, _ in zip(numbers, range(count), strict=False))
