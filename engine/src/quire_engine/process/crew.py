"""The processes of the other ranks, as the engine process has them: started, told, asked whether they are there, and ended.

One thread starts them and waits for the end of any; the first that ends is the end of all. Each says why through a pipe
of its own, which closes when it is gone, whatever else happened. They cannot outlive that thread (rank.py).
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quire_engine.core.request import TokenParams
from quire_engine.core.step import StepPlan, StepResult
from quire_engine.engine import Launched, Runner
from quire_engine.errors import EngineFailure, MemoryFailure, RankLost
from quire_engine.process.link import Link, Message, Ping, Pong, Step, pack

__all__ = ["Crew", "LedRunner"]

CASCADE_S = 0.3  # whoever waits for a rank that has ended ends too: so long we look for the first
VERDICT_S = 3.0  # until it is known who ended, once something went wrong
GOODBYE_S = 1.0
UNUSED = TokenParams(max_tokens=1)  # only rank 0 samples

Answer = TypeVar("Answer", bound=Message)


class Crew:
    def __init__(self, count: int, port: int, flags: Sequence[str], lost: Callable[[EngineFailure], None]) -> None:
        """`count` ranks, of which we are the first, that meet at the port. `lost` is called by the thread that waits
        when one has ended."""
        self._lost = lost
        self._failure: EngineFailure | None = None
        self._judged = threading.Event()
        self._closing = False
        self._nudge_from, self._nudge = os.pipe()
        pairs = [socket.socketpair() for _ in range(1, count)]
        self._links = [Link(ours) for ours, _ in pairs]
        started = threading.Event()
        arguments = [theirs for _, theirs in pairs], port, list(flags), started
        self._thread = threading.Thread(target=self._keep, args=arguments, name="ranks", daemon=True)
        self._thread.start()
        started.wait()
        if self._failure is not None:
            self.close()
            raise self._failure

    def tell(self, message: Message, below: int | None = None) -> None:
        """All, or those below that rank."""
        data = pack(message)
        try:
            for link in self._links[: None if below is None else below - 1]:
                link.write(data)
        except OSError as error:
            raise self.explained(error) from error

    def hear(self, kind: type[Answer]) -> list[Answer]:
        """Wait for a message of each; nobody says anything that he was not asked for."""
        try:
            answers = [link.receive(wait=True) for link in self._links]
        except (EOFError, OSError) as error:
            raise self.explained(error) from error
        return [answer for each in answers for answer in each if isinstance(answer, kind)]

    def ask(self) -> None:
        """Returns when all have answered. One that hangs lets us hang, too: whoever waits for us finds out."""
        self.tell(Ping())
        self.hear(Pong)

    def explained(self, error: BaseException) -> BaseException:
        """Why a rank is gone, if that is what the error comes from; from here on no step can be computed."""
        if not self._closing and isinstance(error, Exception) and self._judged.wait(VERDICT_S):
            assert self._failure is not None
            return self._failure
        if self._failure is None:
            self._failure = RankLost("a step was cut short, and the ranks may be at different points of it", 1)
        self.close()
        return error if isinstance(error, EngineFailure) or not isinstance(error, OSError | EOFError) else self._failure

    def check(self) -> None:
        """The failure, if no step can be computed any more."""
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """End the others. May be called again."""
        if not self._closing:
            self._closing = True
            with contextlib.suppress(OSError):
                os.write(self._nudge, b".")
            os.close(self._nudge)
            for link in self._links:
                link.close()

    # ------------------------------------------------------------------ the thread

    def _keep(self, sockets: list[socket.socket], port: int, flags: list[str], started: threading.Event) -> None:
        processes: list[subprocess.Popen[bytes]] = []
        words: list[int] = []
        try:
            self._start(processes, words, sockets, port, flags)
        except OSError as error:
            self._failure = RankLost(f"the process of another rank cannot be started: {error}", 1)
            for each in sockets:
                each.close()
            for descriptor in (*words, self._nudge_from):
                os.close(descriptor)
            for process in processes:
                process.kill()
                process.wait()
            return
        finally:
            started.set()
        self._wait_for_end(processes, words)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0 if self._failure else GOODBYE_S)
            process.kill()
            process.wait()
        for descriptor in (*words, self._nudge_from):
            os.close(descriptor)

    def _start(
        self,
        processes: list["subprocess.Popen[bytes]"],
        words: list[int],
        sockets: list[socket.socket],
        port: int,
        flags: list[str],
    ) -> None:
        for rank, theirs in enumerate(sockets, 1):
            listens, says = os.pipe()
            words.append(listens)
            numbers = [str(n) for n in (rank, port, theirs.fileno(), says, os.getpid())]
            argv = [sys.executable, "-m", "quire_engine.process.rank", *numbers, *flags]
            try:
                processes.append(subprocess.Popen(argv, pass_fds=[theirs.fileno(), says], stdin=subprocess.DEVNULL))
            finally:
                os.close(says)
            theirs.close()

    def _wait_for_end(self, processes: list["subprocess.Popen[bytes]"], words: list[int]) -> None:
        poll = select.poll()
        for descriptor in (*words, self._nudge_from):
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        if not self._closing:
            self._judge(processes, words)

    def _judge(self, processes: list["subprocess.Popen[bytes]"], words: list[int]) -> None:
        """One has ended, and perhaps by now others because of it: whoever said why, or was killed, was the first."""
        time.sleep(CASCADE_S)
        ended: list[tuple[int, EngineFailure]] = []
        for rank, (process, descriptor) in enumerate(zip(processes, words, strict=True), 1):
            has_news = select.poll()  # select() takes no descriptor from 1,024 on
            has_news.register(descriptor, select.POLLIN)
            if not has_news.poll(0):
                continue
            said = os.read(descriptor, 1 << 16)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GOODBYE_S)
            ended.append(_autopsy(rank, said, process.returncode))
        self._failure = min(ended, key=lambda each: each[0])[1]
        self._judged.set()
        if not self._closing:
            self._lost(self._failure)


class LedRunner:
    """A runner whose steps the others run as well."""

    def __init__(self, runner: Runner, crew: Crew) -> None:
        self._runner = runner
        self._crew = crew

    def launch(self, plan: StepPlan) -> Launched:
        self._crew.check()
        placements = [dataclasses.replace(placed, params=UNUSED) for placed in plan.placements]
        try:
            self._crew.tell(Step(plan=dataclasses.replace(plan, placements=placements)))
            return _Led(self._runner.launch(plan), self._crew)
        except EngineFailure:
            raise
        except BaseException as error:  # Ctrl-C too: the others may be in the middle of the step
            why = self._crew.explained(error)
            if why is error:
                raise
            raise why from error


class _Led:
    def __init__(self, launched: Launched, crew: Crew) -> None:
        self._launched = launched
        self._crew = crew

    def result(self) -> StepResult:
        try:
            result = self._launched.result()
        finally:
            self._crew.check()  # what came of a collective that was cut short is nothing
        return result


def _autopsy(rank: int, said: bytes, code: int | None) -> tuple[int, EngineFailure]:
    """How sure it is that this was the first (0: it is), and why it ended."""
    if said:
        last = json.loads(said)
        return 0, RankLost(f"rank {rank}: {last['reason']}", last["exit_code"])
    if code == -signal.SIGKILL:
        return 1, MemoryFailure(f"rank {rank} was ended by SIGKILL, perhaps for want of memory")
    if code is not None and code < 0:
        return 1, RankLost(f"rank {rank} was ended by signal {-code}", 1)
    return 2, RankLost(f"rank {rank} ended with code {code}", code or 1)
