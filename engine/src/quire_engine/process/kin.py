"""The processes of ranks on this machine: started, each with a connection and a pipe for its last words; why one ended.

Each closes its pipe when it is gone, whatever else happened. They cannot outlive the thread that started them (rank.py).
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

from quire_engine.errors import EngineFailure, MemoryFailure, RankLost

__all__ = ["CASCADE_S", "GOODBYE_S", "Kin"]

CASCADE_S = 0.3  # whoever waits for a rank that has ended ends too: so long we look for the first
GOODBYE_S = 1.0


class Kin:
    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._words: dict[int, int] = {}

    def start(self, rank: int, theirs: socket.socket, port: int, flags: Sequence[str]) -> None:
        """It gets this end of its connection. Ranks meet at the port."""
        listens, says = os.pipe()
        self._words[rank] = listens
        numbers = [str(n) for n in (rank, port, theirs.fileno(), says, os.getpid())]
        argv = [sys.executable, "-m", "quire_engine.process.rank", *numbers, *flags]
        try:
            self._processes[rank] = subprocess.Popen(argv, pass_fds=[theirs.fileno(), says], stdin=subprocess.DEVNULL)
        finally:
            os.close(says)
        theirs.close()

    @property
    def descriptors(self) -> list[int]:
        """Of which one is readable when a rank has ended."""
        return list(self._words.values())

    def ended(self) -> list[tuple[int, EngineFailure]]:
        """For each that has: how sure it is that it was the first (0: it is), and why it ended."""
        found: list[tuple[int, EngineFailure]] = []
        for rank, descriptor in self._words.items():
            has_news = select.poll()  # select() takes no descriptor from 1,024 on
            has_news.register(descriptor, select.POLLIN)
            if not has_news.poll(0):
                continue
            said, process = os.read(descriptor, 1 << 16), self._processes[rank]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GOODBYE_S)
            found.append(_autopsy(rank, said, process.returncode))
        return found

    def end(self, patience_s: float) -> None:
        """All of them, when they have had the time to end by themselves."""
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
            process.kill()
            process.wait()
        for descriptor in self._words.values():
            os.close(descriptor)
        self._words.clear()


def _autopsy(rank: int, said: bytes, code: int | None) -> tuple[int, EngineFailure]:
    if said:
        last = json.loads(said)
        return 0, RankLost(f"rank {rank}: {last['reason']}", last["exit_code"])
    if code == -signal.SIGKILL:
        return 1, MemoryFailure(f"rank {rank} was ended by SIGKILL, perhaps for want of memory")
    if code is not None and code < 0:
        return 1, RankLost(f"rank {rank} was ended by signal {-code}", 1)
    return 2, RankLost(f"rank {rank} ended with code {code}", code or 1)
