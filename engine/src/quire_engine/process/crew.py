"""The processes of the other ranks, as the engine process has them: started, told, asked whether they are there, and ended.

One thread starts those of this machine (kin.py) and waits for the end of any; the first that ends is the end of all. Those
of other machines are there already (gate.py), and so is a connection to each machine, which says why it ends.
"""

import contextlib
import dataclasses
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from quire_engine.core.request import TokenParams
from quire_engine.core.step import StepPlan, StepResult
from quire_engine.engine import Launched, Runner
from quire_engine.errors import EngineFailure, RankLost
from quire_engine.process import wary
from quire_engine.process.gate import Guests, read_line, write_line
from quire_engine.process.kin import CASCADE_S, GOODBYE_S, Kin
from quire_engine.process.link import Link, Message, Ping, Pong, Step, pack

__all__ = ["Crew", "LedRunner"]

VERDICT_S = 3.0  # until it is known who ended, once something went wrong
UNUSED = TokenParams(max_tokens=1)  # only rank 0 samples

Answer = TypeVar("Answer", bound=Message)


class Crew:
    def __init__(
        self, count: int, port: int, flags: Sequence[str], lost: Callable[[EngineFailure], None], guests: Guests
    ) -> None:
        """`count` ranks of this machine, of which we are the first, that meet those of the guests at the port. `lost` is
        called by the thread that waits when one has ended."""
        self._lost = lost
        self._failure: EngineFailure | None = None
        self._judged = threading.Event()
        self._closing = False
        self._nudge_from, self._nudge = os.pipe()
        pairs = [socket.socketpair() for _ in range(1, count)]
        remote = [guests.ranks[rank] for rank in sorted(guests.ranks)]
        self._links = [Link(ours, wary.loads) for ours in [ours for ours, _ in pairs] + remote]
        self._nodes = guests.nodes
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
            self._dismiss()
            for link in self._links:
                link.close()

    # ------------------------------------------------------------------ the thread

    def _keep(self, sockets: list[socket.socket], port: int, flags: list[str], started: threading.Event) -> None:
        kin = Kin()
        try:
            for rank, theirs in enumerate(sockets, 1):
                kin.start(rank, theirs, port, flags)
        except OSError as error:
            self._failure = RankLost(f"the process of another rank cannot be started: {error}", 1)
            for each in sockets:
                each.close()
            os.close(self._nudge_from)
            kin.end(0)
            return
        finally:
            started.set()
        self._wait_for_end(kin)
        kin.end(0 if self._failure else GOODBYE_S)
        os.close(self._nudge_from)

    def _wait_for_end(self, kin: Kin) -> None:
        poll = select.poll()
        for descriptor in (*kin.descriptors, *(node.fileno() for node in self._nodes.values()), self._nudge_from):
            poll.register(descriptor, select.POLLIN)
        poll.poll()
        if not self._closing:
            self._judge(kin)

    def _judge(self, kin: Kin) -> None:
        """One has ended, and perhaps by now others because of it: whoever said why, or was killed, was the first."""
        time.sleep(CASCADE_S)
        unclear = RankLost("a rank has ended, and nobody knows why", 1)
        try:
            ended = kin.ended() + [last for node, link in self._nodes.items() if (last := _last_words(node, link))]
            self._failure = min(ended, key=lambda each: each[0], default=(3, unclear))[1]
        except (OSError, ValueError, TypeError, KeyError):  # of last words that are none
            self._failure = unclear
        self._judged.set()  # whatever came: others wait for the verdict
        self._dismiss()
        if not self._closing:
            self._lost(self._failure)

    def _dismiss(self) -> None:
        """Tell the other nodes that it is over, and why if something is lost."""
        why = {} if self._failure is None else {"reason": str(self._failure)}
        for node in self._nodes.values():
            with contextlib.suppress(OSError):
                write_line(node, why)
                node.shutdown(socket.SHUT_RDWR)  # closed by nobody while the thread may look at it


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


def _last_words(node: int, link: socket.socket) -> tuple[int, EngineFailure] | None:
    """The same as of a rank; None if it is there."""
    has_news = select.poll()
    has_news.register(link, select.POLLIN)
    if not has_news.poll(0):
        return None
    try:
        last = read_line(link, CASCADE_S)
        return 0, RankLost(f"node {node}: {last['reason']}", int(last["exit_code"]))
    except (OSError, EOFError, ValueError, TypeError, KeyError):
        return 1, RankLost(f"node {node} has ended, or cannot be reached any more", 1)
