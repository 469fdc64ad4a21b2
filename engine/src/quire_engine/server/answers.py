"""Pieces of text -> OpenAI's answers, whole or as server-sent events.

Chat and completions differ in the names of things only; `Shape` is that difference.
"""

import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import orjson

from quire_engine.errors import RequestRejected
from quire_engine.process.client import EngineLost, GenerationFailed
from quire_engine.server import errors
from quire_engine.server.generation import Piece, Prompt

__all__ = ["CHAT", "COMPLETION", "Answer", "Shape"]

log = logging.getLogger("quire.serve")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    prefix: str  # of the id
    whole: str  # `object` of a whole answer
    chunk: str  # ... of a streamed one
    text: Callable[[str], Json]  # how a choice holds all of the text
    delta: Callable[[str], Json]  # ... and some more of it
    opening: Json | None  # what the first chunk's choice holds, before any text


CHAT = Shape(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    text=lambda text: {"message": {"role": "assistant", "content": text}},
    delta=lambda text: {"delta": {"content": text} if text else {}},
    opening={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    text=lambda text: {"text": text},
    delta=lambda text: {"text": text},
    opening=None,
)


@dataclass(slots=True)
class Answer:
    shape: Shape
    model: str
    prompt: Prompt
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, pieces: AsyncGenerator[Piece]) -> Json:
        async with aclosing(pieces):
            parts = [piece async for piece in pieces]
        choice = self.shape.text("".join(piece.text for piece in parts))
        return {
            **self._head(self.shape.whole),
            "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": parts[-1].finish}],
            "usage": self._usage(parts[-1].tokens),
        }

    async def stream(self, pieces: AsyncGenerator[Piece], include_usage: bool) -> AsyncIterator[bytes]:
        """Events, ended by [DONE]; whatever goes wrong after the first byte is an error event."""
        no_usage = {"usage": None} if include_usage else {}
        tokens = 0
        try:
            if self.shape.opening is not None:
                yield self._event(self.shape.opening, None, no_usage)
            async with aclosing(pieces):  # a client that leaves closes this generator, and with it the request
                async for piece in pieces:
                    tokens, text = piece.tokens, piece.text
                    if text and piece.finish and self.shape is CHAT:
                        yield self._event(self.shape.delta(text), None, no_usage)  # the reason comes alone
                        text = ""
                    yield self._event(self.shape.delta(text), piece.finish, no_usage)
        except Exception as error:
            if not isinstance(error, EngineLost | GenerationFailed | RequestRejected):
                log.exception("while streaming an answer")
            yield _sse(errors.sentence_of(error))
            return
        if include_usage:
            yield _sse({**self._head(self.shape.chunk), "choices": [], "usage": self._usage(tokens)})
        yield b"data: [DONE]\n\n"

    def _event(self, choice: Json, finish: str | None, extra: Json) -> bytes:
        return _sse(
            {
                **self._head(self.shape.chunk),
                "choices": [{"index": 0, **choice, "logprobs": None, "finish_reason": finish}],
                **extra,
            }
        )

    def _head(self, kind: str) -> Json:
        return {"id": self.shape.prefix + self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, tokens: int) -> Json:
        prompt = len(self.prompt.ids)
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def _sse(data: Json) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
