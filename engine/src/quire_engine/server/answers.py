"""Pieces of text -> OpenAI's answers, whole or as server-sent events.

Streams have many small events, so that an event's constant parts are made once (`_head`, `_tail`) and only the choice
is dumped. Chat and completions differ in what a choice holds: chat.py, completion.py.
"""

import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import orjson

from quire_engine.errors import RequestRejected
from quire_engine.process.client import EngineLost, GenerationFailed
from quire_engine.server import errors
from quire_engine.server.choices import Piece
from quire_engine.server.generation import Job, Progress
from quire_engine.server.requests import Sampled

__all__ = ["Answer", "Json"]

log = logging.getLogger("quire.serve")

Json = dict[str, Any]


class Answer(ABC):
    """One request's answer. Feed it every piece, in order; then, or meanwhile, read it."""

    prefix: str  # of the id
    whole_name: str  # `object` of a whole answer
    chunk_name: str  # ... of a streamed one

    def __init__(self, request: Sampled, job: Job) -> None:
        self.job = job
        self.progress = Progress(job)
        self._request = request
        self._num_tokens = 0
        self._num_reasoning = 0
        self._id = self.prefix + (job.request_id or uuid.uuid4().hex)
        self._model = request.model or job.model
        self._created = int(time.time())
        head = orjson.dumps(self._about(self.chunk_name))[:-1]
        self._head = b"data: " + head + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if request.wants_usage else b"]}\n\n"
        self._with_usage = request.wants_usage_always

    # ------------------------------------------------------------------ what chat and completions do each in their way

    @abstractmethod
    def _openings(self) -> Iterator[Json]:
        """Choices of the first events, before any piece."""

    @abstractmethod
    def _events(self, piece: Piece) -> list[Json]:
        """The choices of the events which a piece makes."""

    @abstractmethod
    def _take(self, piece: Piece) -> None:
        """Keep it for the whole answer."""

    @abstractmethod
    def _choices(self) -> list[Json]:
        """Of the whole answer."""

    def _more(self) -> Json:
        """What the whole answer has besides."""
        return {}

    def _more_of_stream(self) -> Json:
        """What the first event of a stream has besides."""
        return {}

    # ------------------------------------------------------------------ what they share

    async def whole(self, batches: AsyncGenerator[list[Piece]]) -> Json:
        async with aclosing(batches):
            async for pieces in batches:
                for piece in pieces:
                    self._num_tokens += len(piece.tokens)
                    self._take(piece)
        return {
            **self._about(self.whole_name),
            "choices": self._choices(),
            "usage": self._usage(),
            **self._more(),
        }

    async def stream(self, batches: AsyncGenerator[list[Piece]]) -> AsyncGenerator[bytes]:
        """Events, ended by [DONE]; whatever goes wrong after the first byte is an error event, before it is raised."""
        started = False
        try:
            async with aclosing(batches):  # a client that leaves closes this generator, and with it the request
                async for pieces in batches:
                    events = [] if started else self._opening_events()
                    for piece in pieces:
                        self._num_tokens += len(piece.tokens)
                        for choice in self._events(piece):
                            events.append(self._event(choice))
                    if events:
                        started = True
                        yield events[0] if len(events) == 1 else b"".join(events)
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, EngineLost | GenerationFailed | RequestRejected):
                log.exception("while streaming an answer")
            yield b"data: " + orjson.dumps(errors.sentence_of(error)) + b"\n\n"
            return
        if self._request.wants_usage:
            last = {**self._about(self.chunk_name), "choices": [], "usage": self._usage()}
            yield b"data: " + orjson.dumps(last) + b"\n\n"
        yield b"data: [DONE]\n\n"

    def _opening_events(self) -> list[bytes]:
        events = [self._event(choice) for choice in self._openings()]
        if events and (more := self._more_of_stream()):
            first = orjson.loads(events[0].removeprefix(b"data: "))
            events[0] = b"data: " + orjson.dumps(first | more) + b"\n\n"
        return events

    def _event(self, choice: Json) -> bytes:
        if self._with_usage:
            return self._head + orjson.dumps(choice) + b'],"usage":' + orjson.dumps(self._usage()) + b"}\n\n"
        return self._head + orjson.dumps(choice) + self._tail

    def _about(self, kind: str) -> Json:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _usage(self) -> Json:
        prompt, output = self.job.num_prompt_tokens, self._num_tokens
        details = (
            {"completion_tokens_details": {"reasoning_tokens": self._num_reasoning}} if self._num_reasoning else {}
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": self.progress.num_cached},
            **details,
        }
