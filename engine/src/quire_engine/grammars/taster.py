"""A process that compiles grammars before the engine does, and is ended by the kernel when it takes too long.

Compiling is native code, which no thread can be stopped in. What this process says of a grammar: that it is good, or
what is wrong with it. An end without a word means that the grammar took more time or memory than one may. The compiled
form stays here: written out it is tens of times as large, and takes longer than to compile it again. Holds no torch: it
starts in a third of a second.
"""

import os
import re
import resource
import signal
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from quire_engine.core.request import Grammar, GrammarKind
from quire_engine.grammars.binding import TokenizerInfos, compiled, compiler_of, load, matcher_of

__all__ = ["Job", "Start", "Verdict", "main"]

ROOM = 2 << 30  # bytes of address space that compiling may take
PATIENCE = 20  # times the processor's time: how long it may take on a machine that is busy, which is not its fault
WALK = 16  # tokens that are tried


@dataclass(frozen=True, slots=True)
class Start:
    token_bytes: list[bytes]
    end_tokens: list[int]


@dataclass(frozen=True, slots=True)
class Job:
    grammar: Grammar
    seconds: float  # of the processor


@dataclass(frozen=True, slots=True)
class Verdict:
    problem: str | None  # None: it is good


def main(descriptor: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine decides when to end; it closes the link
    sys.modules["torch"] = None  # type: ignore[assignment]  # not to be imported, though it is there
    link = Connection(descriptor)
    try:
        start: Start = link.recv()
        native = load()
        infos = TokenizerInfos(native, start.token_bytes, start.end_tokens)
        infos.of(GrammarKind.JSON)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with tempfile.TemporaryFile() as remarks:
            os.dup2(remarks.fileno(), 2)
            link.send(None)
            while True:
                job: Job = link.recv()
                info = infos.of(job.grammar.kind)  # takes a moment the first time, which is not the grammar's fault
                link.send(_taste(native, info, job, start.end_tokens))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass


def _taste(native: Any, info: Any, job: Job, end_tokens: list[int]) -> Verdict:
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)
    _limit(job.seconds)
    try:
        grammar = compiled(compiler_of(native, info), job.grammar)
        return Verdict(_remark() or _walk(native, grammar, len(info.decoded_vocab()), end_tokens))
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        return Verdict(_plain(str(error)) or type(error).__name__)
    finally:
        _limit(0)


def _limit(seconds: float) -> None:
    """The signals of both clocks end the process, whatever it does."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * PATIENCE)


def _remark() -> str | None:
    """What the compiler warned of: each is something that it does not keep."""
    text = os.pread(2, 4096, 0).decode(errors="replace")
    lines = [line for line in text.splitlines() if "Warning:" in line]
    return _plain(lines[0]) if lines else None


def _plain(message: str) -> str:
    """Without the place in the compiler's source."""
    message = re.sub(r"\[[\d:]+\] \S+?:\d+: |Warning: |Check failed: \(.*?\) is (false|true): ", "", message)
    return message.strip().partition("\n")[0][:400]


def _walk(native: Any, grammar: Any, vocabulary: int, end_tokens: list[int]) -> str | None:
    """Some tokens that it allows, one after another: a grammar may be quick to compile and slow to follow."""
    import numpy as np

    matcher = matcher_of(native, grammar, end_tokens)
    mask = np.zeros((1, -(-vocabulary // 32)), np.int32)
    for step in range(WALK):
        matcher.fill_next_token_bitmask(mask, 0, False)
        allowed = np.flatnonzero(np.unpackbits(mask[0].view(np.uint8), bitorder="little"))
        if not len(allowed):
            return "no text of this model's tokens can match it" if step == 0 else None
        others = allowed[~np.isin(allowed, end_tokens)]
        if not len(others):
            return None
        matcher.accept_token(int(others[(step * 7919) % len(others)]), False)
    return None
