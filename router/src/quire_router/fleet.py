"""The engines as they are now: health, circuit, what each has to do, and kept connections. The state behind `balance`.

Every engine is asked for /readyz all the time. One that has left the registry is kept, and asked, until its last answer
has ended; it gets nothing new.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from quire_router.breaker import Breaker, Circuit
from quire_router.framing import Head
from quire_router.health import PROBE_TIMEOUT_S, Health, Reported, State, reported_by
from quire_router.registry import Model, Registry, Weigh
from quire_router.upstream import Upstream, connect

__all__ = ["OPEN", "Fleet", "Member", "Work"]

MAX_IDLE = 64  # kept connections to each engine
IDLE_S = 4.0  # for which one is kept: servers close theirs after 5
OPEN = "open"  # the state of an engine whose circuit is
_PROBE = b"GET /readyz HTTP/1.1\r\nhost: engine\r\n\r\n"


class Work(Protocol):
    """A request that an engine has."""

    def on_silence(self, health: Health) -> None:
        """The engine has missed one more probe."""
        ...


class Member:
    def __init__(self, address: str, clock: Callable[[], float]) -> None:
        self.address = address
        self.draining = False  # says the registry
        self.gone = False  # from the registry
        self.health = Health()
        self.reported: Reported | None = None  # as of its last answer to a probe
        self.breaker = Breaker()
        self.tokens = 0  # estimated, of the requests it has
        self.work: set[Work] = set()
        self.taken = 0  # requests, since it was first seen
        self.last_error: tuple[float, str] | None = None
        self._idle: deque[tuple[float, Upstream]] = deque()
        self._clock = clock

    @property
    def url(self) -> str:
        return f"unix:{self.address}" if self.address.startswith("/") else f"http://{self.address}"

    def state(self, now: float) -> str:
        if self.draining or self.gone:
            return State.DRAINING.value
        if self.health.state is State.READY and self.breaker.circuit(now) is Circuit.OPEN:
            return OPEN
        return self.health.state.value

    def may_be_asked(self, now: float) -> bool:
        ready = self.health.state is State.READY and not self.draining and not self.gone
        return ready and self.breaker.allows(now)

    def enter(self, work: Work, tokens: int) -> None:
        self.breaker = self.breaker.begin(self._clock())
        self.work.add(work)
        self.tokens += tokens
        self.taken += 1

    def leave(self, work: Work, tokens: int) -> None:
        self.work.discard(work)
        self.tokens -= tokens

    def note_error(self, message: str) -> None:
        self.last_error = (self._clock(), message)

    async def connection(self, *, fresh: bool) -> tuple[Upstream, bool]:
        """A connection, and whether it was used before. OSError."""
        while self._idle and not fresh:
            since, upstream = self._idle.pop()
            if upstream.reusable and self._clock() - since < IDLE_S:
                return upstream, True
            upstream.close()
        return await connect(self.address), False

    def keep(self, upstream: Upstream) -> None:
        if upstream.reusable and not self.gone:
            self._idle.append((self._clock(), upstream))
            if len(self._idle) > MAX_IDLE:
                self._idle.popleft()[1].close()
        else:
            upstream.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


class Fleet:
    """`changed` is called whenever a held request may find an engine."""

    def __init__(self, changed: Callable[[], None], clock: Callable[[], float]) -> None:
        self.members: dict[str, Member] = {}
        self._probes: dict[str, asyncio.Task[None]] = {}
        self._changed = changed
        self._clock = clock

    def sync(self, registry: Registry) -> None:
        """From now on these. Engines that stay keep what is known of them."""
        endpoints = {endpoint.address: endpoint for model in registry.models for endpoint in model.endpoints}
        for address, member in self.members.items():
            member.gone = address not in endpoints
        for address, endpoint in endpoints.items():
            if address not in self.members:
                self.members[address] = Member(address, self._clock)
                self._probes[address] = asyncio.create_task(self._probe(self.members[address]))
            self.members[address].draining = endpoint.draining

    def of(self, model: Model) -> list[Member]:
        return [self.members[e.address] for e in model.endpoints if e.address in self.members]

    def loads(self, model: Model, tried: set[str]) -> dict[str, int]:
        """Of those engines of a model that may be asked."""
        now = self._clock()
        return {
            member.address: member.tokens if model.weigh is Weigh.TOKENS else len(member.work)
            for member in self.of(model)
            if member.address not in tried and member.may_be_asked(now)
        }

    async def stop(self) -> None:
        probes = list(self._probes.values())
        for probe in probes:
            probe.cancel()
        await asyncio.gather(*probes, return_exceptions=True)
        for member in self.members.values():
            member.close()

    async def _probe(self, member: Member) -> None:
        upstream: Upstream | None = None
        try:
            while not member.gone or member.work:
                before = member.health.state
                seen = _Seen()
                try:
                    async with asyncio.timeout(PROBE_TIMEOUT_S):
                        if upstream is None or not upstream.reusable:
                            upstream = await connect(member.address)
                        ending = await upstream.relay((_PROBE,), seen)
                except OSError:  # TimeoutError is one
                    seen.head = None
                if seen.head is not None and ending.broken is None:
                    text = seen.text.decode("latin-1")
                    member.health, member.reported = member.health.answered(seen.head.status, text), reported_by(text)
                else:
                    if upstream is not None:
                        upstream.close()
                    member.health, member.reported = member.health.missed(self._clock()), None
                    for work in tuple(member.work):
                        work.on_silence(member.health)
                if member.health.state is not before:
                    self._changed()
                await asyncio.sleep(member.health.probe_in_s)
        finally:
            if upstream is not None:
                upstream.close()
            member.close()
            del self.members[member.address], self._probes[member.address]


class _Seen:
    """What came of a probe."""

    paused = False

    def __init__(self) -> None:
        self.head: Head | None = None
        self.text = b""

    def begin(self, head: Head) -> None:
        self.head = head

    def body(self, data: bytes) -> None:
        self.text = (self.text + data)[:1024]
