"""Finds stop strings in a stream of bytes, wherever token borders fall."""

__all__ = ["StopMatcher"]


class StopMatcher:
    """Keeps the shortest tail in which a stop string may have begun.

    A string is found in the very feed that completes it, and in no later one: of a string that the caller did not heed,
    nothing is found again.
    """

    __slots__ = ("_keep", "_stops", "_tail")

    def __init__(self, stops: tuple[bytes, ...]) -> None:
        self._stops = stops
        self._keep = max((len(stop) for stop in stops), default=1) - 1
        self._tail = b""

    def feed(self, data: bytes) -> bytes | None:
        """The stop string that `data` completes; of several, the one that begins first."""
        if not self._stops:
            return None
        text, old = self._tail + data, len(self._tail)
        self._tail = text[-self._keep :] if self._keep else b""
        found = [(at, stop) for stop in self._stops if (at := text.find(stop, max(0, old - len(stop) + 1))) >= 0]
        return min(found)[1] if found else None
