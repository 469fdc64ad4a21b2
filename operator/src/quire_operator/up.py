"""`quire up`: the parts of local mode put together. Router first, then engines; the end in the opposite order.

files --Files--> LocalBackend <--reconcile-- Worker
                    |    '--Registry--> Router
commands --ControlSocket--> Supervisor
"""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass
from typing import Any

from quire_api.errors import InvalidInput
from quire_api.reasons import ConditionType
from quire_operator.backends.local import LocalBackend
from quire_operator.local.control import ControlSocket
from quire_operator.local.fit import available_bytes, misfits
from quire_operator.local.picture import picture
from quire_operator.local.state import FolderTaken, StateFolder
from quire_operator.local.telling import Teller, say
from quire_operator.local.watch import Difference, Files
from quire_operator.reconcile import ResourceKey, reconcile
from quire_operator.router_state import InProcess
from quire_operator.scrape import Scraper
from quire_operator.worker import Worker
from quire_router import Router

__all__ = ["UpOptions", "run_up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    host: str
    port: int
    watch: bool


async def run_up(files: Files, state: StateFolder, options: UpOptions) -> int:
    """Until a signal or `quire down`; 1 when it cannot begin, or a model cannot for a reason that only the user can mend."""
    first = files.read()
    if problems := misfits(first.put, available_bytes()):
        raise InvalidInput(problems)
    try:
        left = state.take()
    except (FolderTaken, OSError) as error:
        say(f"quire up: {error}")
        return 1
    try:
        for name in left:
            say(f"quire up: ended {name}, which a killed quire up had left")
        supervisor: Supervisor
        router = Router(lambda model: supervisor.look_now())
        try:
            port = await router.start(options.host, options.port)
        except OSError as error:
            where = f"{options.host}:{options.port}"
            say(f"quire up: cannot listen on {where}: {_reason(error)}; choose another with --host or --port")
            return 1
        supervisor = Supervisor(files, state, router, f"http://{options.host}:{port}/v1")
        return await supervisor.run(first, options.watch)
    finally:
        state.release()


class Supervisor:
    def __init__(self, files: Files, state: StateFolder, router: Router, url: str) -> None:
        self._files, self._state, self._router, self._url = files, state, router, url
        self._teller = Teller(url)
        self._worker = Worker(self._turn)
        self._backend = LocalBackend(state, router.replace, url, self._worker.wake)
        self._scraper = Scraper(self._backend.scrape_targets, InProcess(router.demand), self._worker.wake)
        self._backend.decision = self._scraper.decision
        self._first: set[ResourceKey] = set()  # what was wanted in the beginning and has not served yet
        self._stop, self._cut, self._hopeless = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, first: Difference, watch: bool) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, lambda: self.end(now=False))
        self._state.claim(self._url)
        control = ControlSocket(self)
        await control.start(self._state.path, self._state.control.name)
        say(f"endpoint {self._url}   logs {self._state.logs}/*.log   Ctrl-C ends")
        self._take(first)
        self._first = set(self._backend.all_keys())
        tasks = [asyncio.create_task(self._worker.run()), asyncio.create_task(self._scraper.run())]
        if watch:
            tasks.append(asyncio.create_task(self._files.follow(self._take, self._teller.complain)))
        waits = [asyncio.create_task(self._stop.wait()), asyncio.create_task(self._hopeless.wait())]
        await asyncio.wait([*tasks, *waits], return_when=asyncio.FIRST_COMPLETED)

        for task in (*tasks, *waits):
            if task.done() and task in tasks:
                task.result()  # raises what ended it
            task.cancel()
        await self._drain()
        await control.stop()
        return 1 if self._hopeless.is_set() else 0

    async def _drain(self) -> None:
        """The router takes no more and waits for open answers, which the engines still give; then they end."""
        say("draining: what was accepted finishes; again to cut it")
        stopping = asyncio.gather(self._router.stop(), self._backend.stop())
        cutting = asyncio.create_task(self._cut.wait())
        either: set[asyncio.Future[Any]] = {stopping, cutting}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._cut.is_set():
            self._backend.cut()
            self._router.abort()
        await stopping
        cutting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await cutting

    def _take(self, difference: Difference) -> None:
        """Of two names that change places the router would see one twice: what goes, goes first."""
        for key in difference.removed:
            self._backend.remove(key)
            self._first.discard(key)
            self._teller.forget(key)
        for deployment in difference.put:
            self._worker.wake(self._backend.put(deployment))

    async def _turn(self, key: ResourceKey) -> float | None:
        again = await reconcile(key, self._backend)
        status = self._backend.status(key)
        if status is not None:
            self._teller.tell(key, status)
            if key in self._teller.served:
                self._first.discard(key)
            if key in self._first and status.condition(ConditionType.STALLED):
                self._hopeless.set()
        return again

    def look_now(self) -> None:
        """A request is held for a model without an engine."""
        self._scraper.look_now()

    # what the control socket asks for

    def identity(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "url": self._url, "state": str(self._state.path)}

    def pictures(self) -> list[dict[str, Any]]:
        demand = self._router.demand()
        return [
            picture(
                key, self._backend, demand.get(self._backend.resource(key).model_names[0]), self._files.resources.get(key)
            )
            for key in self._backend.all_keys()
        ]  # fmt: skip

    def scale(self, name: str, replicas: int) -> None:
        key = {key.name: key for key in self._backend.all_keys()}[name]
        self._backend.scale(key, replicas)
        self._worker.wake(key)

    def end(self, *, now: bool) -> None:
        """Drain; a second time, or `now`: cut."""
        if now or self._stop.is_set():
            self._cut.set()
        self._stop.set()


def _reason(error: OSError) -> str:
    """asyncio puts a sentence of its own where the system's word would be."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)
