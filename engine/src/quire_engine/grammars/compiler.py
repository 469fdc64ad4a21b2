"""Compiles grammars one by one, in a thread of its own: first in a process that may be ended (taster.py), then here."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from quire_engine.core.request import Grammar
from quire_engine.errors import RequestRejected
from quire_engine.grammars.binding import TokenizerInfos, compiled, compiler_of, load
from quire_engine.grammars.taster import Job, Start, Verdict, main

__all__ = ["Compiler", "time_limit"]

LIMIT_S = 0.9  # a little less than the second within which a request is to be refused
PER_TOKEN_S = 40e-6  # a text of at most 400 characters takes 5 s with the 128,000 tokens of a large vocabulary


def time_limit(vocabulary: int) -> float:
    """Seconds of the processor that compiling may take: about one, unless the vocabulary is large."""
    return LIMIT_S + PER_TOKEN_S * vocabulary


class Compiler:
    """Of one model's tokens. Starts nothing before the first grammar, or `prepare`; `close` ends what was started."""

    def __init__(self, token_bytes: Sequence[bytes], end_tokens: Sequence[int]) -> None:
        self._start = Start(list(token_bytes), list(end_tokens))
        self._taster: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._infos: TokenizerInfos | None = None
        self._stopped = False

    def prepare(self) -> None:
        """Have the process that tries there before the next grammar comes: to start takes as long as most grammars."""
        if self._stopped or (self._taster is not None and self._taster[0].poll() is None):
            return
        self.close()
        with contextlib.suppress(RuntimeError):  # the next grammar will say why
            self._started()

    def compile(self, grammar: Grammar) -> Any:
        verdict = self._taste(grammar)
        if verdict.problem is not None:
            raise RequestRejected(f"{grammar.param}: {verdict.problem}", grammar.param)
        native = load()
        if self._infos is None:
            self._infos = TokenizerInfos(native, self._start.token_bytes, self._start.end_tokens)
        return compiled(compiler_of(native, self._infos.of(grammar.kind)), grammar)

    def stop(self) -> None:
        """From another thread: what is being compiled is refused, as is all that comes."""
        self._stopped = True
        if self._taster is not None:
            self._taster[0].kill()

    def close(self) -> None:
        if self._taster is not None:
            process, link = self._taster
            self._taster = None
            link.close()
            process.kill()
            process.wait()

    def _taste(self, grammar: Grammar) -> Verdict:
        if self._stopped:
            return Verdict("the engine is shutting down")
        seconds = time_limit(len(self._start.token_bytes))
        if self._taster is not None and self._taster[0].poll() is not None:
            self.close()
        link = self._taster[1] if self._taster is not None else self._started()
        try:
            link.send(Job(grammar, seconds))
            verdict: Verdict = link.recv()
        except (EOFError, OSError):
            self.close()
            return Verdict(f"it cannot be compiled within {seconds:.1f} s and the memory for it: make it simpler")
        return verdict

    def _started(self) -> Connection:
        """Waits until it is ready, so that what it imports does not count as a grammar's time."""
        ours, theirs = socket.socketpair()
        link = Connection(ours.detach())
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from {main.__module__} import main; main({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        self._taster = process, link
        try:
            link.send(self._start)
            link.recv()
        except (EOFError, OSError):
            self.close()
            raise RuntimeError("the process that compiles grammars did not start") from None
        return link
