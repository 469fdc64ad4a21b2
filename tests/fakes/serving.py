"""Real processes for tests: an engine server, a local Quire. Each ends with its context."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Running", "children", "free_port", "quire", "run_quire", "serving", "ticks"]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = 60
    ) -> tuple[int, dict[str, str], bytes]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            link.request(method, path, data, {"content-type": "application/json"})
            answer = link.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            link.close()

    def post(self, path: str, **body: Any) -> tuple[int, Any]:
        status, _, data = self.request("POST", path, {"model": "quire-tiny", **body})
        return status, json.loads(data)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        self.process.send_signal(number)
        return self.process.wait(seconds)


def quire(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "quire_api", *arguments]


def run_quire(*arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
    """To its end; what it printed."""
    return subprocess.run(quire(*arguments), capture_output=True, text=True, timeout=seconds)


@contextlib.contextmanager
def serving(
    folder: Path, command: str, *arguments: str, ready: str = "/readyz", seconds: float = 60
) -> Iterator[Running]:
    """`quire serve` or `quire up` on a free port, ready to answer."""
    port, log = free_port(), folder / f"{command}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QUIRE_STATE": str(folder / "state")}
    with log.open("ab") as out:
        process = subprocess.Popen(
            quire(command, *arguments, f"--port={port}"), stdout=out, stderr=out, env=environment
        )
    running = Running(process, port, log)
    try:
        deadline = time.monotonic() + seconds
        while not _ready(running, ready):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(running: Running, path: str) -> bool:
    try:
        if path.startswith("model:"):  # a router is there before its engines are
            body = {"model": path.removeprefix("model:"), "prompt": "a", "max_tokens": 1}
            return running.request("POST", "/v1/completions", body)[0] == 200
        return running.request("GET", path)[0] == 200
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The processes that `pid` has started and that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def ticks(pid: int) -> int:
    """What a process has used of the processor, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
