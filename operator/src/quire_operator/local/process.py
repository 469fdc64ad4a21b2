"""One engine as a process: started, probed, started again when it ends or hangs, drained. Knows no resource and no plan.

run()  spawn -> probe until it ends ----> pause -> spawn ...
                  '-- hangs: SIGKILL        '-- longer after each failure; an exit code that only a user can mend
                                                 (weights, memory, configuration, device) is not tried in haste
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire_operator.local.logs import RotatingLog
from quire_operator.planner.failures import EXIT_CODES
from quire_operator.planner.observed import Failure

__all__ = ["EngineProcess", "Launch", "Witness"]

BACKOFF_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
PATIENT_S = (30.0, 60.0, 120.0, 300.0)  # after an exit code that says what the user has to mend
PROBE_S = 0.1  # until it is ready
READY_PROBE_S = 1.0
SILENT_S = 30.0  # an engine that served and then answers nothing for so long hangs, as for a kubelet


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What to run."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]  # besides ours
    socket: Path
    log: Path
    grace_s: float  # from SIGTERM to SIGKILL
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """Who is told."""

    changed: Callable[[], None]  # readiness, or the end
    started: Callable[[str, int], None]  # name and pid
    ended: Callable[[str], None]


@dataclass(slots=True)
class Life:
    """Of one process, from spawn to end."""

    process: asyncio.subprocess.Process
    since: float = field(default_factory=time.time)
    was_ready: bool = False
    answered_at: float = field(default_factory=time.monotonic)
    hung: bool = False


class EngineProcess:
    def __init__(self, launch: Launch, witness: Witness) -> None:
        self.launch = launch
        self.ready = False
        self.draining = False
        self.failure: Failure | None = None
        self.restarts = 0
        self._witness = witness
        self._log = RotatingLog(launch.log)
        self._stopping = asyncio.Event()
        self._life: Life | None = None
        self._running = asyncio.create_task(self._run())

    @property
    def pid(self) -> int | None:
        return self._life.process.pid if self._life else None

    @property
    def since(self) -> float | None:
        return self._life.since if self._life else None

    async def stop(self) -> None:
        """It finishes what it has accepted, then it is gone."""
        self.draining = True
        self._stopping.set()
        await asyncio.shield(self._running)

    def cut(self) -> None:
        """While it drains: open streams get an error event."""
        self._signal(signal.SIGTERM)

    async def _run(self) -> None:
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    was_ready = await self._live()
                except OSError as error:  # no memory to fork, no space for the log: that may pass
                    was_ready, self.failure = False, Failure(message=str(error), cause="CannotStart")
                self.ready = False
                failures = 0 if was_ready else failures + 1
                if not self._stopping.is_set():
                    self.restarts += 1
                    self._witness.changed()
                    await self._sleep(_pause(self.failure, failures))
        finally:
            self._log.close()
            self._witness.changed()

    async def _live(self) -> bool:
        """One process, to its end; whether it ever was ready."""
        self.launch.socket.unlink(missing_ok=True)
        parent = os.getpid()
        process = await asyncio.create_subprocess_exec(
            *self.launch.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **self.launch.environment},
            start_new_session=True,  # Ctrl-C is for us to pass on, as a request to drain
            preexec_fn=lambda: _end_with(parent),
        )
        self._life = life = Life(process)
        self._log.begin()
        self._witness.started(self.launch.name, process.pid)
        reading = asyncio.create_task(self._read(process))
        ending = asyncio.create_task(process.wait())
        try:
            await self._probe_until(ending, life)
            if not ending.done():
                await self._terminate(ending)
            code = await ending
            await asyncio.wait({reading}, timeout=1)  # its children may hold the pipe a little longer
        finally:
            reading.cancel()
            self._life = None
            self._witness.ended(self.launch.name)
        self.failure = _failure(code, life, self._log.last_line)
        return life.was_ready

    async def _probe_until(self, ending: asyncio.Future[int], life: Life) -> None:
        """Until it ended, or has to, or hangs."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not ending.done() and not stopping.done():
                status = await _ask(self.launch.socket, "/readyz")
                now = time.monotonic()
                if status is not None:
                    life.answered_at = now
                elif life.was_ready and now - life.answered_at > SILENT_S:
                    life.hung = True
                    self._kill()
                    return
                if (status == 200) != self.ready and not ending.done():
                    self.ready = status == 200
                    life.was_ready = life.was_ready or self.ready
                    self.failure = None if self.ready else self.failure
                    self._witness.changed()
                pause = READY_PROBE_S if self.ready else PROBE_S
                either: set[asyncio.Future[Any]] = {ending, stopping}
                await asyncio.wait(either, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    async def _terminate(self, ending: asyncio.Future[int]) -> None:
        if not self._stopping.is_set():
            return  # it was killed already
        self._signal(signal.SIGTERM)
        done, _ = await asyncio.wait({ending}, timeout=self.launch.grace_s)
        if not done:
            self._kill()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while data := await process.stdout.read(1 << 16):
            with contextlib.suppress(OSError):  # a full disk must not end an engine
                self._log.write(data)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _signal(self, number: signal.Signals) -> None:
        if self._life is not None and self._life.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._life.process.send_signal(number)

    def _kill(self) -> None:
        """With its children; it leads their group, and while it was not waited for nobody else can."""
        if self._life is not None and self._life.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._life.process.pid, signal.SIGKILL)


def _pause(failure: Failure | None, failures: int) -> float:
    patient = failure is not None and failure.exit_code in EXIT_CODES
    pauses = PATIENT_S if patient else BACKOFF_S
    return pauses[min(max(failures - 1, 0), len(pauses) - 1)]


def _failure(code: int, life: Life, last_line: str) -> Failure:
    if life.hung:
        return Failure(message=f"it answered nothing for {SILENT_S:.0f} s, and was killed", cause="Unresponsive")
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else str(-code)
        said = f"; its last words: {last_line}" if last_line else ""
        return Failure(message=f"ended by {name}{said}", exit_code=128 - code)
    return Failure(message=last_line, exit_code=code)


async def _ask(socket: Path, path: str) -> int | None:
    """The status of an answer, or None: nobody answers."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nhost: engine\r\nconnection: close\r\n\r\n".encode())
                words = (await reader.readline()).split(b" ")
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        return None
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def _end_with(parent: int) -> None:
    """In the child: SIGTERM when the supervisor ends, however it does; no engine is left behind."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before that was set
        os._exit(1)
