"""Which engine a request goes to: one pure function of the snapshot, the load and the request's key.

Affinity is rendezvous hashing with bounded loads. Each key ranks the engines by a hash of (key, engine) and goes to
the first of its ranking that is not overloaded: when an engine leaves, only its own keys move, and each engine's keys
spread over all others. Overloaded is who would have more than `FACTOR` times the mean of all, and more than `SLACK`
such requests, for at little load a mean says little. Ties go by address: the same input has the same answer.
"""

from collections.abc import Mapping
from hashlib import blake2b
from math import ceil

from quire_router.registry import Strategy

__all__ = ["FACTOR", "SLACK", "bound", "choose"]

FACTOR = 1.25
SLACK = 4


def choose(
    loads: Mapping[str, int],
    *,
    strategy: Strategy,
    key: bytes | None = None,
    weight: int = 1,
    turn: int = 0,
    factor: float = FACTOR,
    slack: int = SLACK,
) -> str | None:
    """One of the addresses of `loads`, which are all that may be chosen; None if there are none.

    `weight` is what the request adds to a load; `turn` counts requests, for round robin.
    """
    if not loads:
        return None
    if strategy is Strategy.ROUND_ROBIN:
        return sorted(loads)[turn % len(loads)]
    if strategy is Strategy.PREFIX_AFFINITY and key is not None:
        most = bound(sum(loads.values()), len(loads), weight=weight, factor=factor, slack=slack)
        for address in _ranking(key, loads):
            if loads[address] + weight <= most:
                return address
    return min(loads, key=lambda address: (loads[address], address))


def bound(total: int, count: int, *, weight: int = 1, factor: float = FACTOR, slack: int = SLACK) -> int:
    """The most that an engine may have, the new request included, of `count` engines that have `total` without it."""
    return max(slack * weight, ceil(factor * (total + weight) / count))


def _ranking(key: bytes, addresses: Mapping[str, int]) -> list[str]:
    return sorted(addresses, key=lambda a: (blake2b(a.encode(), digest_size=8, key=key[:64]).digest(), a))
