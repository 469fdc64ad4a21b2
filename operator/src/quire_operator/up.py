"""`quire up`: the loop of local mode. Router first, then engines; the end in the opposite order."""

import asyncio
import os
import signal
import sys
import tempfile
from pathlib import Path

from quire_api.deployment import LLMDeployment
from quire_api.status import ConditionType, DeploymentStatus
from quire_operator.backends.local import LocalBackend
from quire_operator.reconcile import ResourceKey, reconcile
from quire_operator.worker import Worker
from quire_router import Router

__all__ = ["run_up"]


async def run_up(deployments: list[LLMDeployment], host: str, port: int) -> int:
    """Until a signal; 1 when a model cannot start for a reason that only the user can mend."""
    router = Router()
    try:
        port = await router.start(host, port)
    except OSError as error:
        print(
            f"quire up: cannot listen on {host}:{port}: {_reason(error)}; choose another with --host or --port",
            file=sys.stderr,
        )
        return 1
    url = f"http://{host}:{port}/v1"
    folder = Path(tempfile.mkdtemp(prefix="quire-"))  # short: a socket's path may have 107 bytes
    backend: LocalBackend
    teller = _Teller(url)
    hopeless = asyncio.Event()

    async def turn(key: ResourceKey) -> float | None:
        again = await reconcile(key, backend)
        status = backend.status(key)
        if status is not None:
            teller.tell(key, status)
            if status.condition(ConditionType.STALLED) and key not in teller.served:
                hopeless.set()
        return again

    worker = Worker(turn)
    backend = LocalBackend(folder, router.replace, url, worker.wake)
    stop, cut = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (cut if stop.is_set() else stop).set())
    print(f"endpoint {url}   logs {folder}/*.log   Ctrl-C ends", file=sys.stderr)
    for deployment in deployments:
        worker.wake(backend.put(deployment))
    working = asyncio.create_task(worker.run())
    waits = {asyncio.create_task(stop.wait()), asyncio.create_task(hopeless.wait())}
    await asyncio.wait({*waits, working}, return_when=asyncio.FIRST_COMPLETED)

    if working.done():
        working.result()  # raises what ended it
    working.cancel()
    print("draining: what was accepted finishes; again to cut it", file=sys.stderr)
    stopping = asyncio.create_task(_drain(router, backend))
    cutting = asyncio.create_task(cut.wait())
    await asyncio.wait({stopping, cutting}, return_when=asyncio.FIRST_COMPLETED)
    if cut.is_set():
        backend.cut()
        router.abort()
    await stopping
    for task in (*waits, cutting):
        task.cancel()
    if hopeless.is_set():
        return 1  # the logs stay: the reason is in them
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return 0


async def _drain(router: Router, backend: LocalBackend) -> None:
    """The router takes no more and waits for open answers, which the engines still give; then they end."""
    await asyncio.gather(router.stop(), backend.stop())


def _reason(error: OSError) -> str:
    """asyncio puts a sentence of its own where the system's word would be."""
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error.strerror or error)


class _Teller:
    """Prints a line whenever there is something new to say."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._said: dict[ResourceKey, tuple[str, str]] = {}
        self.served: set[ResourceKey] = set()

    def tell(self, key: ResourceKey, status: DeploymentStatus) -> None:
        ready = status.condition(ConditionType.READY)
        if ready is None or self._said.get(key) == (ready.reason, ready.message):
            return
        self._said[key] = (ready.reason, ready.message)
        print(f"{key.name}  {ready.reason}  {ready.message}", file=sys.stderr)
        if ready.status == "True":
            self.served.add(key)
        if ready.status == "True" and status.ready_replicas:
            print(_try_it(self._url, status.model_name), file=sys.stderr)


def _try_it(url: str, model: str) -> str:
    body = f'{{"model": "{model}", "stream": true, "temperature": 0, "messages": [{{"role": "user", "content": "What is an LLMDeployment?"}}]}}'
    return f"try:\n  curl -N {url}/chat/completions -H 'content-type: application/json' \\\n    -d '{body}'"
