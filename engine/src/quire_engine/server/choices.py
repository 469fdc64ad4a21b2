"""One choice of an answer: tokens in, pieces of text out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from quire_engine.core.step import FinishReason, TokenLogprob
from quire_engine.params import SamplingParams
from quire_engine.process.client import Ask, TokenEvent
from quire_engine.text.stream import TextStream

__all__ = ["Choice", "Piece"]


@dataclass(slots=True)
class Piece:
    """Some more of a choice; the last one has the reason."""

    index: int
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token that ended it, if the request named it


class Choice:
    def __init__(self, index: int, ask: Ask, asked: SamplingParams, table: Sequence[bytes]) -> None:
        self.index = index
        self.num_tokens = 0
        self._stop_ids = frozenset(asked.stop_token_ids or ())
        self._text = TextStream(table, ask.params.stop, asked.include_stop_str_in_output)

    def add(self, piece: Piece, event: TokenEvent) -> None:
        """Append to `piece` what this event brings."""
        token, finish = event.token, event.finish
        if token is not None:
            self.num_tokens += 1
            piece.tokens.append(token)
        if event.logprob is not None:
            piece.logprobs.append(event.logprob)
        piece.text += self._text.feed(token, finish)
        if finish is not None:
            piece.finish = finish.reason
            if finish.stop is not None:
                piece.stop_reason = finish.stop.decode()
            elif finish.reason is FinishReason.STOP and token in self._stop_ids:
                piece.stop_reason = token
