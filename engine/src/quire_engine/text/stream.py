"""Token events -> text deltas.

Holds back bytes that are half a character, and text that may turn out to be the beginning of a stop string,
so that what was sent never has to be taken back. Any cut of the same bytes into tokens gives the same text.
"""

import codecs
from collections.abc import Sequence

from quire_engine.core.step import FinishReason, TokenEvent

__all__ = ["TextStream"]


class TextStream:
    def __init__(self, token_bytes: Sequence[bytes], stop: tuple[bytes, ...], end_tokens: frozenset[int]) -> None:
        self._token_bytes = token_bytes
        self._stop = stop
        self._end_tokens = end_tokens
        self._held = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, event: TokenEvent) -> str:
        """The text that is certain after `event`; with a final event, all that is left."""
        ended_by_token = event.finish is FinishReason.STOP and event.stop is None
        if event.token is not None and not (ended_by_token and event.token in self._end_tokens):
            self._held += self._token_bytes[event.token]
        if event.stop is not None:
            self._held = self._held[: self._held.index(event.stop)]
        if event.finish is not None:
            text, self._held = self._held, b""
            return self._decoder.decode(text, final=True)
        sure = len(self._held) - self._held_back()
        text, self._held = self._held[:sure], self._held[sure:]
        return self._decoder.decode(text)

    def _held_back(self) -> int:
        """How many last bytes may begin a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
