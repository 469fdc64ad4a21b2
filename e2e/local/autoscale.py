#!/usr/bin/env python3
"""`quire up` with the autoscaler, for real: load on one engine brings a second, its end takes both, a request brings one back.

Prints what the router's /state says as it changes, and `passed`; exit code 1 with a sentence otherwise.
"""

import http.client
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PATIENCE_S = 240.0  # for each step; on an idle machine one takes seconds
PORT = 18_431
RESOURCE = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "tiny"},
    "spec": {
        "model": {"name": "quire-tiny", "source": {"uri": "builtin://quire-tiny"}},
        "accelerator": {"profile": "cpu"},
        "engine": {"maxNumSeqs": 2, "kvCacheGiB": 0.05},
        "autoscaling": {
            "mode": "Builtin", "min": 0, "max": 2,
            "behavior": {"stableWindow": "2s", "panicWindow": "1s", "scaleDownDelay": "3s"},
            "scaleToZero": {"idleAfter": "3s"},
        },
        "drain": {"timeout": "10s"},
    },
}  # fmt: skip


def ask(tokens: int) -> int:
    body = {"model": "quire-tiny", "prompt": "Once", "max_tokens": tokens, "ignore_eos": True}
    link = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE_S)
    try:
        link.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        answer = link.getresponse()
        answer.read()
        return answer.status
    finally:
        link.close()


def state() -> dict[str, Any]:
    link = http.client.HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE_S)
    try:
        link.request("GET", "/state")
        models: list[dict[str, Any]] = json.loads(link.getresponse().read())["models"]
        return models[0]
    except (OSError, http.client.HTTPException, IndexError):  # not there yet
        return {"desired": None, "ready": 0, "held": 0}
    finally:
        link.close()


def until(what: str, true: Callable[[dict[str, Any]], bool]) -> None:
    started, before = time.monotonic(), None
    while not true(now := state()):
        seen = {key: now[key] for key in ("desired", "ready", "held")}
        if seen != before:
            print(f"  {time.monotonic() - started:6.1f} s  {seen}", flush=True)
        before = seen
        if time.monotonic() - started > PATIENCE_S:
            sys.exit(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.05)
    print(f"{what}: {time.monotonic() - started:.1f} s", flush=True)


def play() -> None:
    until("one engine serves", lambda s: s["ready"] == 1)
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            ask(200)

    users = [threading.Thread(target=load) for _ in range(14)]
    for user in users:
        user.start()
    try:
        until("a load of 14 users has brought a second", lambda s: s["ready"] == 2)
    finally:
        over.set()
        for user in users:
            user.join()
    until("without load there is none", lambda s: s["desired"] == 0 and s["ready"] == 0)
    started = time.monotonic()
    status = ask(1)
    if status != 200:
        sys.exit(f"a request at zero was answered {status}")
    print(f"a request at zero was held, and answered: {time.monotonic() - started:.1f} s\npassed")


def engines_follow_the_load() -> None:
    """`quire up` with the autoscaler: load brings a second engine, its end takes both, a request at zero is held and answered"""
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "tiny.yaml", Path(folder) / "up.log"
        file.write_text(yaml.safe_dump(RESOURCE))
        command = [sys.executable, "-m", "quire_api", "up", "-f", str(file), f"--port={PORT}"]
        with log.open("wb") as out:
            supervisor = subprocess.Popen(command, stderr=out)
        try:
            play()
        finally:
            supervisor.terminate()
            supervisor.wait(PATIENCE_S)
            print(log.read_text(), file=sys.stderr)


if __name__ == "__main__":
    engines_follow_the_load()
