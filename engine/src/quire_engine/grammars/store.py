"""The compiled grammars of an engine: each compiled once, off the engine's thread, kept while it is used and longer.

The engine's thread alone calls this; a thread that it starts at the first grammar compiles. A grammar is held from when
its request comes until its last event; of those that nobody holds, the latest used ones stay, by their size.
"""

import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from quire_engine.core.request import Grammar
from quire_engine.errors import RequestRejected
from quire_engine.grammars.binding import load, matcher_of
from quire_engine.grammars.compiler import Compiler

__all__ = ["GrammarStore"]

KEPT_BYTES = 256 << 20
REFUSALS = 64  # that are remembered, so that asking again is refused at once,
REFUSED_S = 60.0  # for so long: perhaps the machine was too busy

_Outcome = Any  # a compiled grammar, or the RequestRejected that it met, or None if nobody waited for it any more


class GrammarStore:
    def __init__(self, token_bytes: Sequence[bytes], end_tokens: Iterable[int], kept_bytes: int = KEPT_BYTES) -> None:
        self._compiler = Compiler(token_bytes, sorted(end_tokens))
        self._kept_bytes = kept_bytes
        self._holders: Counter[Grammar] = Counter()
        self._pending: set[Grammar] = set()
        self._compiled: OrderedDict[Grammar, Any] = OrderedDict()  # the latest used last, as of:
        self._refused: OrderedDict[Grammar, tuple[RequestRejected, float]] = OrderedDict()  # and when
        self._jobs: SimpleQueue[Grammar | None] = SimpleQueue()
        self._done: deque[tuple[Grammar, _Outcome]] = deque()
        self._news = Event()
        self._thread: Thread | None = None
        self._close: weakref.finalize[Any, GrammarStore] | None = None
        self.num_compiled = 0  # since the start

    def hold(self, grammar: Grammar) -> None:
        """Compile it, if it is not yet, and keep it until it is released as often as held."""
        self._holders[grammar] += 1
        if grammar in self._refused and time.monotonic() - self._refused[grammar][1] > REFUSED_S:
            del self._refused[grammar]
        if grammar in self._compiled or grammar in self._refused or grammar in self._pending:
            return
        self._pending.add(grammar)
        self.prepare()
        self._jobs.put(grammar)

    def prepare(self) -> None:
        """Start what compiles, so that the first grammar need not wait for it."""
        if self._thread is None:
            arguments = (self._compiler, self._jobs, self._done, self._news, self._holders)
            self._thread = Thread(target=_compile_all, args=arguments, name="grammars", daemon=True)
            self._thread.start()
            self._close = weakref.finalize(self, _close, self._compiler, self._jobs, self._thread)

    def release(self, grammar: Grammar) -> None:
        self._holders[grammar] -= 1
        if not self._holders[grammar]:
            del self._holders[grammar]
            self._evict()

    def ready(self, grammar: Grammar) -> bool:
        """Is a grammar that is held compiled by now? RequestRejected if it cannot be."""
        self._take_news()
        if grammar in self._refused:
            message = str(self._refused[grammar][0]).removeprefix(f"{self._refused[grammar][0].param}: ")
            raise RequestRejected(f"{grammar.param}: {message}", grammar.param)
        if grammar in self._compiled:
            self._compiled.move_to_end(grammar)
            return True
        return False

    def wait(self, seconds: float) -> None:
        """Until there is news, at most so long."""
        self._news.wait(seconds)

    def matcher(self, grammar: Grammar, end_tokens: Iterable[int]) -> Any:
        """Of a grammar that is ready, and held."""
        return matcher_of(load(), self._compiled[grammar], end_tokens)

    def close(self) -> None:
        """End the thread and the process, if there are any."""
        if self._close is not None:
            self._close()

    def _take_news(self) -> None:
        self._news.clear()
        while self._done:
            grammar, outcome = self._done.popleft()
            self._pending.discard(grammar)
            if isinstance(outcome, RequestRejected):
                self._refused[grammar] = outcome, time.monotonic()
                while len(self._refused) > REFUSALS:
                    self._refused.popitem(last=False)
            elif outcome is not None:
                self.num_compiled += 1
                self._compiled[grammar] = outcome
                self._evict()
            elif grammar in self._holders:
                self._pending.add(grammar)  # somebody came after it was left out
                self._jobs.put(grammar)

    def _evict(self) -> None:
        sizes = {grammar: each.memory_size_bytes() for grammar, each in self._compiled.items()}
        total = sum(sizes.values())
        for grammar, size in sizes.items():
            if total <= self._kept_bytes:
                break
            if grammar not in self._holders:
                del self._compiled[grammar]
                total -= size


def _compile_all(
    compiler: Compiler,
    jobs: "SimpleQueue[Grammar | None]",
    done: deque[tuple[Grammar, _Outcome]],
    news: Event,
    holders: Counter[Grammar],
) -> None:
    """Holds nothing of the store but these, so that a store which nobody uses goes."""
    compiler.prepare()
    while (grammar := jobs.get()) is not None:
        outcome: _Outcome = None
        if grammar in holders:
            try:
                outcome = compiler.compile(grammar)
            except RequestRejected as refusal:
                outcome = refusal
            except Exception as error:  # of this one request, whatever it is
                outcome = RequestRejected(f"{grammar.param}: it could not be compiled: {error}", grammar.param)
        done.append((grammar, outcome))
        news.set()
        compiler.prepare()  # the last one may have been ended
    compiler.close()


def _close(compiler: Compiler, jobs: "SimpleQueue[Grammar | None]", thread: Thread) -> None:
    compiler.stop()
    jobs.put(None)
    thread.join(timeout=10)
