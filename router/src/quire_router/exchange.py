"""One request on its way: which engines it is sent to, when it waits, and how it ends.

    pick  ->  relay  ->  answered                                            done
     ^ |        |------  refused to connect, or 503 "I take nothing"  ->     pick another
     | |        |------  broke off before any byte                    ->     pick another, at most MOST_RESETS times
     | |        '------  broke off after that                         ->     502, an error event, or the end of the connection
     | '->  held  ->  429, 503
     '---------'

The same engine is never asked twice, unless it has turned away the request and was found ready again. What goes to
another engine has not been answered by a single byte.
"""

import asyncio
from dataclasses import dataclass, field

from quire_router.answer import Answer
from quire_router.balance import choose
from quire_router.fleet import Member
from quire_router.health import GIVE_UP_S, MOVE_AFTER_S, Health
from quire_router.hold import Due, Entry, Wait
from quire_router.peek import Ask
from quire_router.registry import Model, Weigh
from quire_router.replies import COMMENT, END_OF_CHUNKS, STREAM_HEAD, Refusal, chunk, error_event
from quire_router.request import Request
from quire_router.scene import Client, Scene
from quire_router.upstream import Ending, Upstream

__all__ = ["CLIENT_LEFT", "Exchange"]

CLIENT_LEFT = 499
MOST_RESETS = 3  # a request at which engines die is not to kill them all
LOOK_EVERY_S = 0.5  # while held: an open circuit closes without an event
RETRY_AFTER_S = 2


@dataclass(eq=False, slots=True)
class Exchange:
    scene: Scene
    client: Client
    request: Request
    model: str  # its first name
    ask: Ask
    key: bytes | None
    address: str | None = None  # of the engine that has it, or had it last
    answer: Answer | None = None
    error: str | None = None  # what went wrong last
    broken: bool = False  # the client got less than an answer
    held: bool = False
    _opened: bool = False  # a stream that was given a head while it waited
    _wait: Wait | None = None
    _upstream: Upstream | None = None
    _ended_by_us: str | None = None
    _moved: bool = False  # away from an engine that was silent
    _turned_away: set[str] = field(default_factory=set)
    _reset: set[str] = field(default_factory=set)

    async def run(self) -> int:
        """To the end; the status."""
        while True:
            model = self.scene.find(self.model)
            if model is None:
                return self._refuse(
                    Refusal(status=404, message=f"the model {self.model!r} is no longer served", param="model")
                )
            loads = self.scene.fleet.loads(model, self._turned_away | self._reset)
            address = choose(
                loads, strategy=model.strategy, key=self.key, turn=self.scene.turn(model.name),
                weight=self.ask.weight if model.weigh is Weigh.TOKENS else 1,
            )  # fmt: skip
            if address is not None:
                status = await self._send(self.scene.fleet.members[address])
                if status is not None:
                    return status
            elif (refusal := self._hopeless(model) or await self._wait_for_engine(model)) is not None:
                return self._refuse(refusal)

    def end(self, reason: str) -> None:
        """Whatever it is at: the router's time is over."""
        self._ended_by_us = reason
        if self._upstream is not None:
            self._upstream.fail(reason)

    def on_silence(self, health: Health) -> None:
        if self._upstream is None:
            return
        silent_s = health.silent_s(self.scene.clock())
        moves = silent_s >= MOVE_AFTER_S and not self._moved and not self._upstream.came and self._could_move()
        if moves or silent_s >= GIVE_UP_S:
            self._moved = True
            self._upstream.fail("the engine does not answer")

    def _could_move(self) -> bool:
        model = self.scene.find(self.model)
        tried = self._turned_away | self._reset | {self.address or ""}
        return model is not None and bool(self.scene.fleet.loads(model, tried)) and len(self._reset) + 1 < MOST_RESETS

    # to an engine

    async def _send(self, member: Member) -> int | None:
        """The status, or None: to be sent to another."""
        tokens = self.ask.weight
        self.address = member.address
        member.enter(self, tokens)
        try:
            ending = await self._relay(member, fresh=False) or await self._relay(member, fresh=True)
        except OSError as error:
            member.breaker = member.breaker.failed(self.scene.clock())
            member.health = member.health.missed(self.scene.clock())
            self._another(member, self._turned_away, "refused", f"the engine cannot be reached: {_sentence(error)}")
            return None
        except asyncio.CancelledError:
            member.breaker = member.breaker.abandoned()
            raise
        finally:
            self._upstream = self.client.upstream = None
            member.leave(self, tokens)
        assert ending is not None
        return self._judge(member, ending)

    async def _relay(self, member: Member, *, fresh: bool) -> Ending | None:
        """None: the connection had been kept, and was closed by the engine just when it was used."""
        upstream, kept = await member.connection(fresh=fresh)
        self.answer = Answer(self.client, self.scene.clock, opened=self._opened)
        self._upstream = self.client.upstream = upstream
        ending = await upstream.relay(self.request.forward(), self.answer, bodiless=self.request.method == b"HEAD")
        if ending.broken == "the engine closed the connection" and kept and not ending.came and not fresh:
            return None
        member.keep(upstream)
        return ending

    def _judge(self, member: Member, ending: Ending) -> int | None:
        answer, now = self.answer, self.scene.clock()
        assert answer is not None
        if ending.broken is None:
            assert answer.head is not None
            if (refused := answer.refused) is not None:
                message = str(refused["error"].get("message"))
                member.health = member.health.answered(503, message)
                member.breaker = member.breaker.abandoned()  # it may have been the one on trial
                self._another(member, self._turned_away, "unready", message)
                return None
            failed = answer.head.status >= 500 and answer.head.status != 503
            member.breaker = member.breaker.failed(now) if failed else member.breaker.succeeded()
            if answer.head.status >= 500:
                self.error = f"the engine answered {answer.head.status}"
                member.note_error(self.error)
            return answer.complete()
        self.error = ending.broken
        if self._ended_by_us is not None:
            return self._broke(answer, ending, Refusal(status=503, message=ending.broken, retry_after_s=RETRY_AFTER_S))
        member.breaker = member.breaker.failed(now)
        if not ending.came and len(self._reset) + 1 < MOST_RESETS:
            self._another(member, self._reset, "reset", ending.broken)
            return None
        member.note_error(ending.broken)
        return self._broke(
            answer,
            ending,
            Refusal(
                status=502, message=f"{ending.broken} in the middle of its answer" if ending.came else ending.broken
            ),
        )

    def _another(self, member: Member, tried: set[str], cause: str, message: str) -> None:
        tried.add(member.address)
        member.note_error(message)
        self.error = message
        self.scene.retried(self.model, cause)

    # waiting

    def _hopeless(self, model: Model) -> Refusal | None:
        """Engines broke off at it, and there is no other, not even one that is being started."""
        others = {endpoint.address for endpoint in model.endpoints} - self._reset
        if self._reset and not others and not model.loading:
            return Refusal(status=502, message=self.error or "the engine broke off")
        return None

    async def _wait_for_engine(self, model: Model) -> Refusal | None:
        """None: there is one, so far as we know."""
        hold, now = self.scene.hold(model.name), self.scene.clock()
        entry = hold.enter(model.hold_requests)
        if entry is Entry.FULL:
            message = f"{model.name} has no engine ready, and {hold.held} requests wait for one already"
            return Refusal(status=429, message=message, retry_after_s=RETRY_AFTER_S)
        streams = self.ask.stream and self.request.version != "1.0"
        wait = self._wait = self._wait or Wait(since=now, until=now + model.hold_s, streams=streams)
        self.held = True
        try:
            if entry is Entry.FIRST:
                self.scene.wake(model.name)
            return await self._until_ready(wait)
        finally:
            hold.leave()
            self.held = False

    async def _until_ready(self, wait: Wait) -> Refusal | None:
        while True:
            now = self.scene.clock()
            due = wait.due(now)
            if self.scene.turning_away or self._ended_by_us or due is Due.GIVE_UP:
                why = (
                    "the router is shutting down"
                    if due is not Due.GIVE_UP
                    else f"no engine was ready within {now - wait.since:.0f} s"
                )
                message = f"{self.model}: {why}" + (f"; the last error: {self.error}" if self.error else "")
                return Refusal(status=503, message=message, retry_after_s=RETRY_AFTER_S)
            if due is Due.COMMENT:
                self._comment(wait)
            model = self.scene.find(self.model)
            if model is None or self.scene.fleet.loads(model, self._reset) or self._hopeless(model):
                self._turned_away.clear()
                return None
            await self.scene.changed(min(wait.next_at() - now, LOOK_EVERY_S))

    def _comment(self, wait: Wait) -> None:
        self.client.write((b"" if self._opened else STREAM_HEAD % self.request.id) + chunk(COMMENT))
        self._opened = True
        wait.comments += 1

    # ends

    def _refuse(self, refusal: Refusal) -> int:
        self.error = refusal.message
        if self._opened:
            self.broken = True
            self.client.write(chunk(error_event(refusal.body())) + END_OF_CHUNKS)
        else:
            self.client.write(refusal.reply(self.request.id, bodiless=self.request.method == b"HEAD"))
        return refusal.status

    def _broke(self, answer: Answer, ending: Ending, refusal: Refusal) -> int:
        if not answer.sent:
            return self._refuse(refusal)
        self.broken = True
        answer.broke_off(ending, refusal)
        return refusal.status


def _sentence(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error.strerror or error)
