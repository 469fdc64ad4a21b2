"""Fetches for tests: in this process with a short temper, or as a real `quire fetch`."""

import json
import os
import random
import subprocess
import time
from pathlib import Path
from typing import Any

from fakes.hub import Hub
from fakes.serving import quire

from quire_engine.fetch.bring import Fetch, bring
from quire_engine.fetch.choose import Choice
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.progress import Meter
from quire_engine.fetch.retry import Policy
from quire_engine.fetch.source import parse_source

__all__ = [
    "IMPATIENT",
    "TOKEN",
    "at",
    "environment",
    "fetch_here",
    "killed_after",
    "noise",
    "owner",
    "run_fetch",
    "settle",
    "start_fetch",
]

IMPATIENT = Policy(attempts=4, base_s=0.01, cap_s=0.02, longest_wait_s=2.0)
TOKEN = "hf_the-secret-of-the-tests"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def at(store: Path, repo: str, commit: str = "a" * 40) -> Path:
    return store / "hf" / repo / commit


def fetch_here(
    source: str, store: Path, *, choice: Choice | None = None, meter: Meter | None = None, **more: Any
) -> Path:
    """$HF_ENDPOINT must be the fake's."""
    wanted = Fetch(source=parse_source(source), store=store, choice=choice or Choice(), policy=IMPATIENT, **more)
    return bring(wanted, meter or Meter(), Halt())


def environment(hub: Hub, **more: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "AWS_")) and not k.lower().endswith("_proxy")
    }
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": "/nowhere", **more}


def start_fetch(hub: Hub, *arguments: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        quire("fetch", *arguments),
        env=environment(hub, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_fetch(hub: Hub, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        quire("fetch", *arguments), env=environment(hub, **more), capture_output=True, text=True, timeout=60
    )


def killed_after(hub: Hub, sent: int, *arguments: str) -> int:
    """A fetch that is killed (-9) once the hub has sent so many more bytes, or has ended before; bytes sent to it."""
    before = hub.sent
    process = start_fetch(hub, *arguments, "--quiet")
    while hub.sent - before < sent and process.poll() is None:
        time.sleep(0.0005)
    process.kill()
    process.communicate()
    settle(hub)
    return hub.sent - before


def settle(hub: Hub) -> None:
    """Until nothing more is being sent to the dead."""
    before = -1
    while before != hub.sent:
        before = hub.sent
        time.sleep(0.05)


def owner(store: Path) -> int | None:
    """The process that holds the lock of the only model here."""
    locks = sorted(store.rglob(".lock-*"), key=lambda path: int(path.name.rpartition(".")[2]))
    try:
        told = json.loads(locks[-1].read_text())
    except (IndexError, ValueError, OSError):
        return None
    return None if told["released"] else int(told["process"]["pid"])
