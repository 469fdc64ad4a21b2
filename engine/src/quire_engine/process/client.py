"""The API process's end of the link: starts the engine process, hands requests over, spreads its reports.

All of it runs in one event loop. What was submitted within one turn of the loop travels as one message, and
one report fills the mailboxes of all who wait for some of it.
"""

import asyncio
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import cast

from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Load
from quire_engine.core.step import Finish, TokenLogprob
from quire_engine.errors import EXIT_HUNG, RequestRejected
from quire_engine.process.link import HEADER, Embedded, Ended, Expect, Ping, Pong, Ready, Report, Work, pack
from quire_engine.process.pulse import PERIOD_S, Pulse

__all__ = ["Ask", "EngineClient", "EngineLost", "GenerationFailed", "PromptNews", "TokenEvent"]

log = logging.getLogger("quire.serve")

CUT = "the engine is shutting down, and the time to finish is over"


class EngineLost(Exception):
    """The engine ended, or is about to, while a request was under way."""


class GenerationFailed(Exception):
    """This one request could not go on; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One sequence to be generated."""

    prompt: tuple[int, ...]
    params: TokenParams
    priority: int = 0
    follows: int | None = None  # the position, in the same call, of an earlier one with the same prompt
    domain: tuple[str, ...] = ()


@dataclass(slots=True)
class TokenEvent:
    """One more token of a sequence, or its end, or both."""

    index: int  # of the sequence in the call
    arrived: float  # by time.monotonic
    token: int | None
    finish: Finish | None
    logprob: TokenLogprob | None


@dataclass(slots=True)
class PromptNews:
    """Of a sequence's prompt: its first step began; so much was found in the cache; some log probabilities."""

    index: int
    started: float  # by time.monotonic
    cached: int
    logprobs: list[TokenLogprob]


Event = TokenEvent | PromptNews


class _Mailbox:
    """What has come for one call, and who waits for it."""

    __slots__ = ("_error", "_items", "_waiter", "unfinished")

    def __init__(self, sequences: int) -> None:
        self.unfinished = sequences  # whose end has not come
        self._items: list[Event] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_done(self) -> bool:
        """Nothing more will come."""
        return not self.unfinished and not self._items

    def put(self, item: Event) -> None:
        self._items.append(item)
        if self._waiter is not None:
            self._wake()

    def fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Event]:
        """All that has come, at least one; what failed is raised once the rest was taken."""
        if not self._items and self._error is None:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        if not self._items and self._error is not None:
            raise self._error
        items, self._items = self._items, []
        return items


class EngineClient:
    def __init__(self, flags: Sequence[str], on_report: Callable[[Report], None]) -> None:
        """`flags` are the engine process's."""
        self._flags = flags
        self._on_report = on_report
        self._ids = count()
        self._open: dict[RequestId, tuple[_Mailbox, int]] = {}  # and the sequence's index in its call
        self._unbegun: set[RequestId] = set()
        self._embedding: dict[RequestId, asyncio.Future[list[array[float]]]] = {}
        self._load = Load(
            running=0, waiting=0, kv_usage=0, preemptions=0, finished=0, prefix_queries=0, prefix_hits=0
        )  # the last
        self._outbox = Work()
        self._flushing = False
        self._cut = False
        self._stopping = False
        self._failed: Ended | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._pulse = Pulse(time.monotonic())
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Ready] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    @property
    def failed(self) -> Ended | None:
        """How the engine process ended, unless we ended it."""
        return self._failed

    @property
    def num_waiting(self) -> int:
        """Sequences and embeddings that have not begun, beyond those that the next step can take."""
        room = 0 if self._load.waiting else self.ready.result().max_num_seqs - self._load.running
        return len(self._unbegun) - room + max(0, len(self._embedding) - 1)

    @property
    def silent_for(self) -> float:
        """Seconds since the engine was last heard."""
        return self._pulse.age(time.monotonic())

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "quire_engine.process.worker", str(theirs.fileno()), *self._flags]
        # A session of its own: Ctrl-C reaches the API process alone, which lets the engine finish its work.
        self._process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._tasks = [asyncio.create_task(self._listen(reader)), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """Close the link, which ends the engine process; kill it if it does not notice, or is too busy loading to."""
        if self._process is None:
            return
        self._stopping = True
        loaded = self.ready.done() and not self.ready.cancelled()
        if self._writer is not None:
            self._writer.close()
        if not loaded:
            self._process.kill()
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            self._kill()
            await asyncio.to_thread(self._process.wait)
        for task in self._tasks:
            task.cancel()

    async def generate(self, asks: Sequence[Ask]) -> AsyncGenerator[list[Event]]:
        """What happens to these sequences, as it comes, until all have finished. Leaving early aborts the others."""
        mailbox, ids = _Mailbox(len(asks)), [RequestId(next(self._ids)) for _ in asks]
        with self._expecting(ids):
            for index, (ask, request_id) in enumerate(zip(asks, ids, strict=True)):
                self._open[request_id] = mailbox, index
                self._unbegun.add(request_id)
                leader = None if ask.follows is None else ids[ask.follows]
                self._work().requests.append(
                    Request(
                        id=request_id,
                        prompt=ask.prompt,
                        params=ask.params,
                        priority=ask.priority,
                        leader=leader,
                        domain=ask.domain,
                    )
                )
            while not mailbox.is_done:
                yield await mailbox.take()

    async def embed(self, texts: list[list[int]]) -> "list[array[float]]":
        """A vector for each."""
        request_id = RequestId(next(self._ids))
        with self._expecting([request_id]):
            self._embedding[request_id] = asyncio.get_running_loop().create_future()
            self._work().to_embed[request_id] = texts
            return await self._embedding[request_id]

    @contextmanager
    def _expecting(self, ids: list[RequestId]) -> Iterator[None]:
        """Whatever of them is still open at the end is aborted."""
        if not self.alive:
            raise EngineLost(self.ended.result().reason)
        if self._cut:
            raise EngineLost(CUT)
        try:
            yield
        finally:
            for request_id in ids:
                self._unbegun.discard(request_id)
                future = self._embedding.pop(request_id, None)
                unanswered = future is not None and (future.cancelled() or not future.done())
                if (self._open.pop(request_id, None) or unanswered) and self.alive:
                    self._work().aborts.append(request_id)

    # ------------------------------------------------------------------ the link

    def _work(self) -> Work:
        """What leaves with the next message."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)
        return self._outbox

    def _flush(self) -> None:
        work, self._outbox, self._flushing = self._outbox, Work(), False
        if self._writer is not None and self.alive:
            self._writer.write(pack(work))

    async def _watch(self) -> None:
        """Ping; when the engine has been silent for too long, end it."""
        await asyncio.wait([self.ready])
        self._pulse = Pulse(time.monotonic())
        while self.alive and self._writer is not None:
            self._writer.write(pack(Ping()))
            await asyncio.sleep(PERIOD_S)
            if self._pulse.has_stopped(time.monotonic()) and self.alive:
                reason = f"the engine process has not answered for {self.silent_for:.1f} s: it hangs"
                log.error(reason)
                self._kill()
                self._conclude(Ended(exit_code=EXIT_HUNG, reason=reason))

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        ended: Ended | None = None
        try:
            while ended is None:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = pickle.loads(await reader.readexactly(length))
                self._pulse.heard(time.monotonic())
                match message:
                    case Report():
                        self._spread(message)
                    case Expect(seconds):
                        self._pulse.announced(seconds, time.monotonic())
                    case Embedded():
                        self._deliver(message)
                    case Ready():
                        self.ready.set_result(message)
                    case Ended():
                        ended = message
                    case Pong():
                        pass
        except (asyncio.IncompleteReadError, ConnectionError):
            ended = await self._autopsy()
        except Exception as error:  # else every request would wait for ever, in good health
            log.exception("in the link to the engine process")
            ended = Ended(exit_code=1, reason=f"the link to the engine process failed: {type(error).__name__}: {error}")
        if self.alive:
            self._conclude(ended)

    async def _autopsy(self) -> Ended:
        """The link broke without a word: find out how the process ended."""
        assert self._process is not None
        try:
            code = await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            return Ended(exit_code=1, reason="the engine process closed its link")
        if code < 0:
            if -code == signal.SIGKILL:
                return Ended(exit_code=11, reason="the engine process was ended by SIGKILL, perhaps for want of memory")
            return Ended(exit_code=1, reason=f"the engine process was ended by signal {-code}")
        return Ended(exit_code=code or 1, reason=f"the engine process ended with code {code}")

    def _spread(self, report: Report) -> None:
        self._on_report(report)
        self._load = report.load
        self._unbegun.difference_update(report.cached)
        scores, open_ = report.prompt_logprobs, self._open
        for request_id in report.cached.keys() | scores.keys():
            if there := open_.get(request_id):
                found = report.cached.get(request_id, 0)
                there[0].put(PromptNews(there[1], report.started, found, scores.get(request_id, [])))
        finished, logprobs, now = report.finished, report.logprobs, time.monotonic()
        ids = cast("list[RequestId]", report.ids.tolist())
        for i, (number, token) in enumerate(zip(ids, report.tokens, strict=True)):
            there = open_.get(number)
            if there is None:
                continue  # its client has left
            mailbox, index = there
            finish = finished.get(i)
            if finish is not None:
                del open_[number]
                mailbox.unfinished -= 1
            mailbox.put(TokenEvent(index, now, None if token < 0 else token, finish, logprobs.get(i)))
        for rejected_id, (message, param) in report.rejected.items():
            if there := open_.pop(rejected_id, None):
                there[0].fail(RequestRejected(message, param))

    def _deliver(self, embedded: Embedded) -> None:
        for request_id, vectors in embedded.vectors.items():
            if (future := self._embedding.get(request_id)) and not future.done():
                future.set_result(vectors)
        for request_id, (message, param) in embedded.rejected.items():
            if (future := self._embedding.get(request_id)) and not future.done():
                future.set_exception(RequestRejected(message, param))

    def _conclude(self, ended: Ended) -> None:
        if not self.ready.done():
            self.ready.cancel()
        self._failed = None if self._stopping else ended
        self.ended.set_result(ended)
        self._fail_all(ended.reason)

    def cut_all(self) -> None:
        """End every open request, and every one to come, with an error."""
        self._cut = True
        self._fail_all(CUT)

    def _fail_all(self, reason: str) -> None:
        for mailbox in {mailbox for mailbox, _ in self._open.values()}:
            mailbox.fail(EngineLost(reason))
        for future in self._embedding.values():
            if not future.done():
                future.set_exception(EngineLost(reason))
