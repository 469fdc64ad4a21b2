#!/usr/bin/env python3
"""The router beside nginx `least_conn`, before the same backends on this machine.

    delay      256 streams whose events come at their own pace; how much later an event arrives than directly from the
               backend, and what processor time the proxy takes for it
    open       2,000 streams at once; how many do not come to their end
    affinity   four engines (quire-tiny) and conversations that grow and share system prompts: the share of prompt tokens
               which the engines find in their prefix caches, with one replica and with four, by strategy

Turns are taken: direct, nginx, router, and again. nginx is one worker, as the router is one process; its buffering is
off, and connections to backends are kept, in both. The JSON goes to benchmarks/results/. nginx is installed by
`scripts/system-packages.sh bench`.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
import uvloop
from streams import Reading, read_streams

HERE = Path(__file__).parent
BACKENDS = 4
USERS, EVENTS, EVERY_S, STREAMS = 256, 40, 0.05, 3
OPEN, OPEN_EVENTS, OPEN_EVERY_S, OPEN_OVER_S = 2000, 8, 1.0, 4.0
BUSY = 0.05  # share of all cores
TALKERS, SYSTEMS, TURNS = 24, 4, 8
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "how",
    "red",
    "the",
    "sun",
    "was",
    "in",
    "the",
    "sky",
    "when",
    "we",
    "came",
    "to",
    "our",
    "house",
    "by",
    "the",
    "sea",
]

NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
worker_rlimit_nofile 20000;
events {{ worker_connections 9000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engines {{ least_conn; {servers} keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 100000;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 300s;
    }}
  }}
}}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default: 3)")
    parser.add_argument("--only", choices=("delay", "open", "affinity"), action="append", help="not all of it")
    arguments = parser.parse_args()
    wanted = arguments.only or ["delay", "open", "affinity"]
    if shutil.which("nginx") is None and wanted != ["affinity"]:
        print("nginx is not here: run scripts/system-packages.sh bench", file=sys.stderr)
        return 1
    report: dict[str, Any] = {"machine": machine.describe(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    others = machine.Others(os.getpid())
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as name:
        if wanted != ["affinity"]:
            report |= _beside_nginx(Path(name), wanted, arguments.rounds)
        if "affinity" in wanted:
            report["affinity"] = _affinity(Path(name))
    report["others_share"] = round(others.share(), 3)  # of all cores, used by processes that are not ours
    if report["others_share"] > BUSY:
        print(f"others used {report['others_share']:.0%} of this machine: the times say little", file=sys.stderr)
    out = HERE / "results" / f"router-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {out}")
    return 0


# ---------------------------------------------------------------------- beside nginx


def _beside_nginx(folder: Path, wanted: list[str], rounds: int) -> dict[str, Any]:
    backends = _ports(BACKENDS)
    port = {"nginx": _ports(1)[0], "router": _ports(1)[0]}
    servers = "".join(f"server 127.0.0.1:{backend};" for backend in backends)
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, servers=servers, port=port["nginx"]))
    names = [f"--backend=bench=127.0.0.1:{backend}" for backend in backends]
    commands = {
        "backends": [sys.executable, str(HERE / "streams.py"), *map(str, backends)],
        "nginx": ["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)],
        "router": [sys.executable, "-m", "quire_api", "router", f"--port={port['router']}", *names],
    }
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        pids = {name: stack.enter_context(_running(command)) for name, command in commands.items()}
        for each in (*backends, *port.values()):
            _wait_for(each)
        paths = {
            "direct": (backends, 0),
            "nginx": ([port["nginx"]], pids["nginx"]),
            "router": ([port["router"]], pids["router"]),
        }
        if "delay" in wanted:
            turns = [
                {
                    name: _turn(
                        *path, users=USERS, streams=STREAMS, events=EVENTS, every=EVERY_S, over=EVENTS * EVERY_S
                    )
                    for name, path in paths.items()
                }
                for _ in range(rounds)
            ]
            report["delay"] = {"users": USERS, "events_per_s": USERS / EVERY_S, "turns": turns} | _added(turns)
            print(json.dumps(_added(turns), indent=1))
        if "open" in wanted:
            report["open"] = {
                name: _turn(
                    *paths[name], users=OPEN, streams=1, events=OPEN_EVENTS, every=OPEN_EVERY_S, over=OPEN_OVER_S
                )
                for name in ("nginx", "router")
            }
            print(json.dumps(report["open"], indent=1))
    return report


def _turn(ports: list[int], pid: int, **load: Any) -> dict[str, Any]:
    before = _cpu_s(pid)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        reading: Reading = runner.run(read_streams(ports, **load))
    events = len(reading.delays_ms) + len(reading.first_ms)
    delays, first = sorted(reading.delays_ms), sorted(reading.first_ms)
    return {
        "complete": reading.complete,
        "dropped": reading.dropped,
        "delay_ms": {share: round(delays[int(float(share) * len(delays))], 3) for share in ("0.5", "0.9", "0.99")},
        "first_ms": {share: round(first[int(float(share) * len(first))], 3) for share in ("0.5", "0.9", "0.99")},
        "proxy_us_per_event": round((_cpu_s(pid) - before) / events * 1e6, 1) if pid else None,
    }


def _added(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The median over the turns of what a proxy adds to the direct way of the same turn."""

    def median(values: list[float]) -> float:
        return round(sorted(values)[len(values) // 2], 3)

    return {
        name: {
            "added_p50_ms": median([t[name]["delay_ms"]["0.5"] - t["direct"]["delay_ms"]["0.5"] for t in turns]),
            "added_first_p50_ms": median([t[name]["first_ms"]["0.5"] - t["direct"]["first_ms"]["0.5"] for t in turns]),
            "us_per_event": median([t[name]["proxy_us_per_event"] for t in turns]),
            "dropped": sum(t[name]["dropped"] for t in turns),
        }
        for name in ("nginx", "router")
    }


# ---------------------------------------------------------------------- affinity


def _affinity(folder: Path) -> dict[str, Any]:
    engines, router = _ports(BACKENDS), _ports(1)[0]
    config = folder / "router.yaml"
    report: dict[str, Any] = {"talkers": TALKERS, "systems": SYSTEMS, "turns": TURNS}
    cases = [("one", 1, "PrefixAffinity"), *((s, BACKENDS, s) for s in ("PrefixAffinity", "LeastLoaded", "RoundRobin"))]
    with contextlib.ExitStack() as stack:
        for port in engines:
            stack.enter_context(
                _running([sys.executable, "-m", "quire_api", "serve", "builtin://quire-tiny", f"--port={port}"])
            )
        for port in engines:
            _wait_for(port, "/readyz")
        for number, (name, count, strategy) in enumerate(cases):
            backends = [f"127.0.0.1:{port}" for port in engines[:count]]
            config.write_text(
                json.dumps({"models": [{"name": "quire-tiny", "backends": backends, "strategy": strategy}]})
            )
            with _running([sys.executable, "-m", "quire_api", "router", f"--port={router}", f"--config={config}"]):
                _wait_for(router)
                before = [_prefix_counts(port) for port in engines]
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(_converse(router, number))
                after = [_prefix_counts(port) for port in engines]
            queries, hits = (sum(a[i] - b[i] for a, b in zip(after, before, strict=True)) for i in (0, 1))
            report[name] = {"queries": queries, "hits": hits, "hit_rate": round(hits / queries, 4)}
            print(name, report[name])
    report["of_one_replica"] = round(report["PrefixAffinity"]["hit_rate"] / report["one"]["hit_rate"], 4)
    return report


async def _converse(port: int, salt: int) -> None:
    """Users who share a few system prompts; each goes on with his own conversation, which is sent whole every time."""

    async def user(number: int) -> None:
        dice = random.Random(f"{salt}.{number}")
        system = " ".join(random.Random(f"{salt}.{number % SYSTEMS}").choices(WORDS, k=120))
        messages = [{"role": "system", "content": system}]
        for _ in range(TURNS):
            messages.append({"role": "user", "content": " ".join(dice.choices(WORDS, k=30))})
            body = json.dumps({"model": "quire-tiny", "messages": messages, "max_tokens": 8}).encode()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 "), answer[:300]
            said = json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
            messages.append({"role": "assistant", "content": said})

    await asyncio.gather(*(user(number) for number in range(TALKERS)))


def _prefix_counts(port: int) -> tuple[float, float]:
    lines = _get(port, "/metrics").decode().splitlines()

    def total(name: str) -> float:
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))

    return total("vllm:prefix_cache_queries_total"), total("vllm:prefix_cache_hits_total")


# ---------------------------------------------------------------------- processes


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[int]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in sockets]


def _wait_for(port: int, path: str = "/livez") -> None:
    deadline = time.monotonic() + 120
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if _get(port, path):
                return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody answers on port {port}")
        time.sleep(0.05)


def _get(port: int, path: str) -> bytes:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        link.request("GET", path)
        answer = link.getresponse()
        data = answer.read()
        return data if answer.status == 200 else b""
    finally:
        link.close()


def _cpu_s(pid: int) -> float:
    return machine.cpu_s(machine.family(pid)) if pid else 0.0


if __name__ == "__main__":
    sys.exit(main())
