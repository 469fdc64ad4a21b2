"""The router: its parts put together, its own endpoints, and what whoever runs it may say and ask.

    client  --request, read whole-->  Connection  --Door-->  Exchange  --choose-->  Upstream  -->  engine
            <--the engine's bytes, as they come, at the client's pace--

`replace` tells it the world; `demand` says what is wanted of each model, `Wake` when one is wanted that has no engine.
"""

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from quire_router.backstage import Backstage
from quire_router.client import HEAD_S, Connection
from quire_router.door import Door, Visit
from quire_router.exchange import CLIENT_LEFT, Exchange
from quire_router.fleet import Fleet
from quire_router.hold import Hold
from quire_router.keys import Key, Keys
from quire_router.ledger import Ledger
from quire_router.peek import peek, session_key
from quire_router.registry import Model, Registry
from quire_router.replies import Refusal, reply
from quire_router.request import Request
from quire_router.scene import ALWAYS_TOLD, Demand, Scene, Wake, World
from quire_router.state import describe
from quire_router.ui import Pages
from quire_router.watch import Watched

__all__ = ["Router"]

SWEEP_S = 1.0  # how often connections are looked at whose time is over
LAST_WORDS_S = 1.0  # for error events to reach their clients
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_READ_ONLY = Refusal(status=405, message="this can only be read: use GET")


class Router:
    def __init__(self, wake: Wake = lambda model: None) -> None:
        self.registry = Registry()
        self.world: World = ALWAYS_TOLD
        self.backstage = Backstage(self._probe, self.demand)
        clock = asyncio.get_running_loop().time
        self._clock = clock
        self._news: set[asyncio.Future[None]] = set()
        self._holds: dict[str, Hold] = {}
        self._turns: Counter[str] = Counter()
        self._door = Door(clock)
        self._ledger = Ledger(self._door, clock)
        self._fleet = Fleet(self._tell, clock)
        self._wake = wake
        self._exchanges: set[Exchange] = set()
        self._inside: Counter[str] = Counter()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._stopping = False
        self._files: list[Watched] = []
        self._pages = Pages()
        self._scene = Scene(
            fleet=self._fleet, find=lambda name: self.registry.find(name), hold=self._hold, wake=self._wake_model,
            turn=self._turn, changed=self._changed, clock=clock,
            retried=lambda model, cause: self._ledger.metrics.of("retries_total", model, cause).inc(),
        )  # fmt: skip

    # for whoever runs it

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; the port (a free one for 0). OSError when it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._answer, self._connections),
            host,
            port,
            ssl=tls,
            backlog=2048,
            ssl_handshake_timeout=HEAD_S if tls else None,
        )
        self._sweeping = asyncio.create_task(self._sweep())
        return int(self._server.sockets[0].getsockname()[1])

    def replace(self, registry: Registry) -> None:
        """From now on this is the world."""
        if registry == self.registry:
            return
        self.registry = registry
        self._fleet.sync(registry)
        self._ledger.recent.keep(model.name for model in registry.models)
        self._tell()

    def watch(self, path: Path, take: Callable[[Path], None], *also: Path) -> Watched:
        """Have a file shown in the state, and its bad changes counted. The caller loads and follows it."""
        failures = self._ledger.metrics.of("reload_failures_total", path.name)
        self._files.append(Watched(path, take, failures.inc, also))
        return self._files[-1]

    def use_keys(self, keys: Keys) -> None:
        """From now on only these come in."""
        self._door.keys = keys

    def demand(self) -> dict[str, Demand]:
        """Of every model there is."""
        return {model.name: self._demand(model) for model in self.registry.models}

    async def stop(self, patience: float = 300.0, *, keep_holding: bool = False) -> None:
        """Be unready and take no more. What is being answered is finished, until patience ends; then streams get an
        error event. What is held is turned away at once, unless engines may still come (`keep_holding`)."""
        self._stopping = True
        self._scene.turning_away = not keep_holding
        self._tell()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self._connections):
            connection.finish()
        await self._empty(patience)
        for exchange in tuple(self._exchanges):
            exchange.end("the router is shutting down")
        self._tell()
        await self._empty(LAST_WORDS_S)
        self.abort()
        if self._sweeping is not None:
            self._sweeping.cancel()
        self.backstage.stop()
        await self._fleet.stop()

    def abort(self) -> None:
        """Cut every connection now."""
        for connection in tuple(self._connections):
            connection.abort()

    async def _empty(self, patience: float) -> None:
        deadline = self._clock() + patience
        while self._connections and self._clock() < deadline:
            await asyncio.sleep(0.02)

    # answering

    async def _answer(self, request: Request, client: Connection) -> None:
        bodiless = request.method == b"HEAD"
        if request.path in ("/livez", "/readyz", "/health", "/metrics"):
            client.write(self._probe(request.path, bodiless))
            return
        if self._pages.owns(request.path):
            known = request.header(b"if-none-match")
            client.write(self._pages.answer(request.method, request.path, known, request.id))
            return
        key = self._door.keys.admit(request.header(b"authorization"))
        if isinstance(key, Refusal):
            self._refuse(key, "", request, client)
            return
        if (own := self._own(request.path, key)) is not None:
            status, body = own if request.method in (b"GET", b"HEAD") else (405, _READ_ONLY.body())
            client.write(reply(status, json.dumps(body).encode(), bodiless=bodiless))
            return
        visit = self._door.admit(request.path, key, peek(request.body), self.registry, self._inside.__getitem__)
        if isinstance(visit, Refusal):
            self._refuse(visit, key.name, request, client)
        else:
            await self._relay(request, visit, client)

    def _probe(self, path: str, bodiless: bool) -> bytes:
        if path == "/metrics":
            return reply(200, self._metrics(), _TEXT, bodiless=bodiless)
        if path != "/livez" and (why := "it is shutting down" if self._stopping else self.world.missing()):
            return reply(503, f"the router is not ready: {why}".encode(), "text/plain", bodiless=bodiless)
        silent_s = self.world.silent_s()  # no reason to take away all routers at once: what they know goes on serving
        said = f"ok, but nothing new was told for {silent_s:.0f} s" if silent_s else "ok"
        return reply(200, said.encode(), "text/plain", bodiless=bodiless)

    def _metrics(self) -> bytes:
        models, now = self.registry.models, self._clock()
        return self._ledger.render(
            ((model.name, self._hold(model.name).held) for model in models),
            ((model.name, member.state(now)) for model in models for member in self._fleet.of(model)),
            self.world.silent_s(),
        )

    def _own(self, path: str, key: Key) -> tuple[int, object] | None:
        """Answers which need no engine."""
        models = [model for model in self.registry.models if key.may_use(model)]
        if path == "/state":
            # What is wrong with a file names models, too: only for those who may use all of them.
            files = self._files if len(models) == len(self.registry.models) else ()
            return 200, describe(
                models, self._fleet, lambda name: self._hold(name).held, self._ledger.recent, files, now=self._clock(), stopping=self._stopping
            )  # fmt: skip
        listed = [
            {"id": n, "object": "model", "created": 0, "owned_by": "quire"} for model in models for n in model.names
        ]
        if path == "/v1/models":
            return 200, {"object": "list", "data": listed}
        if path.startswith("/v1/models/"):
            name = path.removeprefix("/v1/models/")
            missing = Refusal(status=404, message=f"the model {name[:200]!r} does not exist", param="model")
            return next(((200, one) for one in listed if one["id"] == name), (404, missing.body()))
        return None

    def _refuse(self, refusal: Refusal, key: str, request: Request, client: Connection) -> None:
        client.write(refusal.reply(request.id, bodiless=request.method == b"HEAD"))
        self._ledger.refused(refusal, key)

    async def _relay(self, request: Request, visit: Visit, client: Connection) -> None:
        name = visit.model.name
        session = request.header(b"x-session-id")
        exchange = Exchange(
            self._scene, client, request, name, visit.ask, session_key(session) if session else visit.ask.key
        )
        self._exchanges.add(exchange)
        self._inside[name] += 1
        self._ledger.metrics.of("requests_open", name).inc()
        status = CLIENT_LEFT
        try:
            status = await exchange.run()
        finally:
            self._exchanges.discard(exchange)
            self._inside[name] -= 1
            self._ledger.metrics.of("requests_open", name).dec()
            self._ledger.ended(exchange, visit, status)

    # what exchanges share

    def _hold(self, model: str) -> Hold:
        return self._holds.setdefault(model, Hold())

    def _demand(self, model: Model) -> Demand:
        members = self._fleet.of(model)
        return Demand(
            held=self._hold(model.name).held,
            in_flight=sum(len(member.work) for member in members),
            tokens=sum(member.tokens for member in members),
            resource=model.resource,
        )

    def _wake_model(self, model: str) -> None:
        self._ledger.metrics.of("wakes_total", model).inc()
        self._wake(model)

    def _turn(self, model: str) -> int:
        self._turns[model] += 1
        return self._turns[model]

    def _tell(self) -> None:
        for waiting in self._news:
            if not waiting.done():
                waiting.set_result(None)

    async def _changed(self, seconds: float) -> None:
        news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.add(news)
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news, max(0.0, seconds))
        finally:
            self._news.discard(news)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = self._clock()
            for connection in (*self._connections, *self.backstage.connections):
                connection.expire(now)
