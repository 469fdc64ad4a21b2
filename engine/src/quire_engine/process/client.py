"""The API process's end of the link: starts the engine process, hands requests over, spreads its reports.

All of it runs in one event loop. What was submitted within one turn of the loop travels as one message, and
one report feeds the queues of all requests it has news for.
"""

import asyncio
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from itertools import count

from quire_api.engine import EngineConfig
from quire_api.flags import to_argv
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Load
from quire_engine.core.step import Finish
from quire_engine.errors import RequestRejected
from quire_engine.process.link import HEADER, Ended, Ready, Report, Work, pack

__all__ = ["EngineClient", "EngineLost", "GenerationFailed", "TokenEvent"]


log = logging.getLogger("quire.serve")

CUT = "the engine is shutting down, and the time to finish is over"


class EngineLost(Exception):
    """The engine ended, or is about to, while a request was under way."""


class GenerationFailed(Exception):
    """This one request could not go on; the message says why."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One more token of a request, or its end, or both."""

    token: int | None
    finish: Finish | None


_Item = TokenEvent | RequestRejected | EngineLost


class EngineClient:
    def __init__(self, config: EngineConfig, on_load: Callable[[Load], None]) -> None:
        self._config = config
        self._on_load = on_load
        self._ids = count()
        self._queues: dict[RequestId, asyncio.Queue[_Item]] = {}
        self._outbox = Work()
        self._cut = False
        self._stopping = False
        self._failed: Ended | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
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

    async def start(self) -> None:
        ours, theirs = socket.socketpair()
        argv = [sys.executable, "-m", "quire_engine.process.worker", str(theirs.fileno()), *to_argv(self._config)]
        # A session of its own: Ctrl-C reaches the API process alone, which lets the engine finish its work.
        self._process = subprocess.Popen(
            argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        reader, self._writer = await asyncio.open_connection(sock=ours)
        self._listening = asyncio.create_task(self._listen(reader))

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
            os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    async def generate(self, prompt: tuple[int, ...], params: TokenParams, priority: int) -> AsyncGenerator[TokenEvent]:
        """The events of one request, the final one last. Leaving the iteration early aborts the request."""
        request_id = RequestId(next(self._ids))
        queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._queues[request_id] = queue
        finished = False
        try:
            if not self.alive:
                raise EngineLost(self.ended.result().reason)
            if self._cut:
                raise EngineLost(CUT)
            self._work().requests.append(Request(id=request_id, prompt=prompt, params=params, priority=priority))
            while not finished:
                item = await queue.get()
                if not isinstance(item, TokenEvent):
                    finished = True
                    raise item
                finished = item.finish is not None
                yield item
        finally:
            del self._queues[request_id]
            if not finished and self.alive:
                self._work().aborts.append(request_id)

    # ------------------------------------------------------------------ the link

    def _work(self) -> Work:
        """What leaves with the next message."""
        if not self._outbox.requests and not self._outbox.aborts:
            asyncio.get_running_loop().call_soon(self._flush)
        return self._outbox

    def _flush(self) -> None:
        work, self._outbox = self._outbox, Work()
        if self._writer is not None and self.alive:
            self._writer.write(pack(work))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        ended: Ended | None = None
        try:
            while ended is None:
                (length,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                message = pickle.loads(await reader.readexactly(length))
                if isinstance(message, Report):
                    self._spread(message)
                elif isinstance(message, Ready):
                    self.ready.set_result(message)
                elif isinstance(message, Ended):
                    ended = message
        except (asyncio.IncompleteReadError, ConnectionError):
            ended = await self._autopsy()
        except Exception as error:  # else every request would wait for ever, in good health
            log.exception("in the link to the engine process")
            ended = Ended(exit_code=1, reason=f"the link to the engine process failed: {type(error).__name__}: {error}")
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
        self._on_load(report.load)
        for i, (request_id, token) in enumerate(zip(report.ids, report.tokens, strict=True)):
            queue = self._queues.get(RequestId(request_id))
            if queue is None:
                continue  # its client has left
            queue.put_nowait(TokenEvent(None if token < 0 else token, report.finished.get(i)))
        for rejected_id, (message, param) in report.rejected.items():
            if queue := self._queues.get(rejected_id):
                queue.put_nowait(RequestRejected(message, param))

    def _conclude(self, ended: Ended) -> None:
        if not self.ready.done():
            self.ready.cancel()
        self._failed = None if self._stopping else ended
        self.ended.set_result(ended)
        for queue in self._queues.values():
            queue.put_nowait(EngineLost(ended.reason))

    def cut_all(self) -> None:
        """End every open request, and every one to come, with an error."""
        self._cut = True
        for queue in self._queues.values():
            queue.put_nowait(EngineLost(CUT))
