"""One machine: engines are processes, and this is what starts them again.

A process plays the part of a pod, and `LocalBackend` that of the kubelet: it probes readiness, restarts what
ended with growing pauses, and ends it with SIGTERM and patience. The router's registry follows readiness.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quire_api.deployment import LLMDeployment
from quire_api.status import DeploymentStatus
from quire_operator.planner.observed import Failure, Instance, Key, ObjectState, Observed, Workload
from quire_operator.planner.plan import Action, Apply, Create, Delete, Desired, digest
from quire_operator.reconcile import ResourceKey
from quire_operator.render import process
from quire_router import Endpoint, Model, Registry

__all__ = ["LocalBackend"]

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
PROBE_S = 0.1
UID = "local"  # owner of all processes here


class LocalBackend:
    def __init__(
        self, folder: Path, publish: Callable[[Registry], None], url: str, wake: Callable[[ResourceKey], None]
    ) -> None:
        self._folder = folder
        self._to_router = publish
        self._url = url
        self._wake = wake
        self._resources: dict[ResourceKey, LLMDeployment] = {}
        self._status: dict[ResourceKey, DeploymentStatus] = {}
        self._processes: dict[ResourceKey, dict[str, EngineProcess]] = {}

    def put(self, deployment: LLMDeployment) -> ResourceKey:
        """A resource is wanted from now on."""
        key = ResourceKey(deployment.metadata.namespace, deployment.metadata.name)
        self._resources[key] = deployment.model_copy(
            update={"metadata": deployment.metadata.model_copy(update={"uid": UID, "generation": 1})}
        )
        self._processes.setdefault(key, {})
        return key

    def status(self, key: ResourceKey) -> DeploymentStatus | None:
        return self._status.get(key)

    async def stop(self) -> None:
        """End every engine; each finishes what it has accepted."""
        await asyncio.gather(*(p.stop() for family in self._processes.values() for p in family.values()))

    def cut(self) -> None:
        """End every engine now."""
        for family in self._processes.values():
            for engine in family.values():
                engine.signal(signal.SIGTERM)  # the second one: open streams get an error event

    # what the reconciler asks for

    def observe(self, key: ResourceKey) -> tuple[Mapping[str, Any], Observed] | None:
        if key not in self._resources:
            return None
        self._publish()
        family = self._processes[key]
        ready = sum(p.ready for p in family.values())
        return self._resources[key].model_dump(mode="json", by_alias=True, exclude_unset=True), Observed(
            status=self._status.get(key),
            objects={
                Key("Process", name): ObjectState(uid=name, owner_uid=UID, applied=p.digest)
                for name, p in family.items()
            },
            workload=Workload(
                current=True, replicas=len(family), updated=len(family), ready=ready, updated_ready=ready
            ),
            instances=tuple(Instance(name=name, ready=p.ready, failure=p.failure) for name, p in family.items()),
        )

    def render(self, deployment: LLMDeployment) -> Desired:
        return process.render(deployment, self._folder, self._url)

    async def execute(self, key: ResourceKey, action: Action) -> None:
        family = self._processes[key]
        if isinstance(action, Apply | Delete):
            await family.pop(action.key.name).stop()
        if isinstance(action, Apply | Create):
            family[action.key.name] = EngineProcess(action.manifest, lambda: self._wake(key))

    async def write_status(self, key: ResourceKey, status: DeploymentStatus) -> None:
        self._status[key] = status

    def _publish(self) -> None:
        """Tell the router who is ready."""
        self._to_router(
            Registry(tuple(self._model(resource, self._processes[key]) for key, resource in self._resources.items()))
        )

    def _model(self, resource: LLMDeployment, family: Mapping[str, "EngineProcess"]) -> Model:
        name, *aliases = resource.model_names
        ready = sorted(process.socket for process in family.values() if process.ready)
        return Model(
            name=name,
            aliases=tuple(aliases),
            endpoints=tuple(Endpoint(address=socket) for socket in ready),
            desired=len(family),
            loading=len(family) - len(ready),
        )


class EngineProcess:
    """One engine that is kept running until `stop`."""

    def __init__(self, manifest: Mapping[str, Any], changed: Callable[[], None]) -> None:
        self.digest = digest(manifest)
        self.socket: str = manifest["socket"]
        self.ready = False
        self.failure: Failure | None = None
        self._command = [sys.executable, "-m", "quire_api", *manifest["command"][1:]]
        self._log = Path(manifest["log"])
        self._grace: float = manifest["graceSeconds"]
        self._changed = changed
        self._running: subprocess.Popen[bytes] | None = None
        self._keeping = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping
        self.ready = False
        if self._running is None:
            return
        self.signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._running.wait, self._grace)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            await asyncio.to_thread(self._running.wait)

    def signal(self, number: signal.Signals) -> None:
        if self._running is not None and self._running.poll() is None:
            os.kill(self._running.pid, number)

    async def _keep_running(self) -> None:
        failures = 0
        while True:
            try:
                was_ready = await self._run_once()
            except OSError as error:  # no memory to fork, no space for the log: that may pass
                self.ready, was_ready, self.failure = False, False, Failure(message=str(error), cause="CannotStart")
            failures = 0 if was_ready else failures + 1
            self._changed()
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])

    async def _run_once(self) -> bool:
        """Start, probe, wait for the end; whether it ever was ready."""
        Path(self.socket).unlink(missing_ok=True)
        with self._log.open("ab") as log:
            start = log.tell()
            self._running = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us to pass on, as a request to drain
                preexec_fn=_end_with_parent,
            )
        was_ready = False
        while (code := self._running.poll()) is None:
            ready = await _answers(self.socket)
            if ready != self.ready:
                self.ready, was_ready = ready, was_ready or ready
                self.failure = None if ready else self.failure
                self._changed()
            await asyncio.sleep(PROBE_S)
        self.ready = False
        self.failure = Failure(message=_last_line(self._log, start), exit_code=code)
        return was_ready


async def _answers(socket: str) -> bool:
    """Does /readyz say 200?"""
    try:
        reader, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n\r\n")
        status = await asyncio.wait_for(reader.readline(), 5)
        return status.split(b" ")[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()


def _last_line(log: Path, start: int) -> str:
    """The last words since `start`, without reading more than their end."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """In the child: SIGTERM when the supervisor ends, however it does; no engine is left behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
