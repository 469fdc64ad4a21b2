"""Tokens -> text deltas.

Holds back bytes that are half a character, and text that may turn out to be the beginning of a stop string,
so that what was sent never has to be taken back. Any cut of the same bytes into tokens gives the same text.
"""

import codecs
from collections.abc import Sequence

from quire_engine.core.step import Finish, FinishReason

__all__ = ["TextStream"]


class TextStream:
    def __init__(self, token_bytes: Sequence[bytes], stop: tuple[bytes, ...], include_stop: bool = False) -> None:
        """`include_stop`: what ends the text, a string or a token, is shown as well."""
        self._token_bytes = token_bytes
        self._stop = stop
        self._include_stop = include_stop
        self._held = b""
        self._most_held = max((len(each) for each in stop), default=1) - 1  # what is longer has been met
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int | None, finish: Finish | None = None) -> str:
        """The text that is certain now; with the finish, all that is left."""
        if (
            finish is None and token is not None and not self._stop
        ):  # as nearly always: nothing is held but by the decoder
            return self._decoder.decode(self._token_bytes[token])
        ended_by_token = finish is not None and finish.reason is FinishReason.STOP and finish.stop is None
        if token is not None and (self._include_stop or not ended_by_token):
            self._held += self._token_bytes[token]
        if finish is not None and finish.stop is not None:
            end = self._held.rfind(finish.stop)  # an earlier one came before the output was long enough
            if end >= 0:  # else something is shown that the engine does not look at
                self._held = self._held[: end + len(finish.stop) if self._include_stop else end]
        if finish is not None:
            text, self._held = self._held, b""
            return self._decoder.decode(text, final=True)
        sure = len(self._held) - self._held_back()
        text, self._held = self._held[:sure], self._held[sure:]
        return self._decoder.decode(text)

    def _held_back(self) -> int:
        """How many last bytes may begin a stop string."""
        tail = self._held[max(0, len(self._held) - self._most_held) :]
        most = 0
        for stop in self._stop:
            at = tail.find(stop[:1])
            while 0 <= at < len(tail) - most:
                if stop.startswith(tail[at:]):
                    most = len(tail) - at
                at = tail.find(stop[:1], at + 1)
        return most
