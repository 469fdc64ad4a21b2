#!/usr/bin/env python3
"""Quire beside vLLM, llama.cpp and transformers on this machine's CPU: offline generation, no HTTP.

Each engine is a process that stays: benchmarks/adapters. All sequences begin at once, greedy, with fixed lengths and a
new seed each time; how turns are taken fairly is in turns.py.

This file decides what is measured, when, and what is kept; it imports no engine. Quire runs in .venv, its peers in
.venv-peers, which benchmarks/peers/setup.sh makes. The JSON and a plot of it go to benchmarks/results/.
"""

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import machine
from models import write_model
from turns import (
    CACHE,
    CPUS,
    ENVIRONMENT,
    HERE,
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
    write,
)

CELLS = {"tiny": [1, 32, 128], "0.45b": [1, 16]}  # model -> sequences at once
TURN_S = 1.5  # short generations are repeated for so long


@dataclass(frozen=True)
class Engine:
    name: str
    module: str
    python: Path
    environment: dict[str, str | None] = field(default_factory=dict)  # None: unset


ENGINES = {
    engine.name: engine
    for engine in (
        Engine("quire", "adapters.quire", Path(sys.executable)),
        Engine(
            "vllm",
            "adapters.vllm",
            PEERS,
            {
                **VLLM_ENVIRONMENT,
                "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process beats three where cores are few
            },
        ),
        Engine("llama.cpp", "adapters.llama_cpp", PEERS),
        Engine("transformers", "adapters.transformers", PEERS),
    )
}
SEEDS = itertools.count(1)  # no prompt comes twice: nothing is found in a prefix cache


class Running(Family):
    """One engine with one model, behind the lines of JSON of benchmarks/adapters."""

    def __init__(self, name: str, model: str, most: int) -> None:
        engine = ENGINES[name]
        super().__init__(
            f"{name}-{model}",
            [engine.python, "-m", engine.module, CACHE / model, str(most), str(LENGTH), str(len(CPUS))],
            engine.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.versions: dict[str, str] = self._read()["versions"]

    def first_token(self) -> None:
        self.generate(1, 1)

    def generate(self, sequences: int, output: int, seed: int | None = None) -> dict[str, Any]:
        command = {
            "sequences": sequences,
            "prompt_tokens": PROMPT,
            "output_tokens": output,
            "seed": next(SEEDS) if seed is None else seed,
        }
        self.stdin.write(json.dumps(command) + "\n")
        self.stdin.flush()
        reply = self._read()
        if reply["output_tokens"] != sequences * output:
            raise RuntimeError(f"{self._log.stem}: {reply['output_tokens']} tokens, not {sequences} × {output}")
        return reply

    def ask_to_end(self) -> None:
        self.stdin.close()

    def _read(self) -> dict[str, Any]:
        line = self.stdout.readline()
        if not line:
            raise self.lost()
        reply: dict[str, Any] = json.loads(line)
        return reply


def turn(running: Running, sequences: int, _attempt: int) -> dict[str, float]:
    firsts: list[float] = []
    seconds, tokens = 0.0, 0
    while not firsts or seconds + sum(firsts) < TURN_S:
        firsts.append(running.generate(sequences, 1)["seconds"])
        reply = running.generate(sequences, OUTPUT)
        seconds += reply["seconds"]
        tokens += reply["output_tokens"]
    return {"tokens_per_s": tokens / seconds, "first_token_s": statistics.median(firsts)}


def cell(fleet: dict[str, Running], model: str, sequences: int, rounds: int) -> list[dict[str, Any]]:
    """All engines at one number of sequences."""
    samples: dict[str, list[int]] = {}
    for name, running in fleet.items():
        running.resume()
        samples[name] = running.generate(sequences, OUTPUT, seed=0)["sample"]  # to warm up, and to see the same tokens
        running.pause()
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in fleet}
    for _ in range(rounds):
        for name, running in fleet.items():
            turns[name].append(undisturbed(running, partial(turn, running, sequences)))
    rows = []
    for name, taken in turns.items():
        row: dict[str, Any] = {
            "model": model,
            "sequences": sequences,
            "engine": name,
            "rounds": taken,
            "sample": samples[name],
        }
        for measure in ("tokens_per_s", "first_token_s"):
            row[measure] = summary([t[measure] for t in taken])
        if "quire" in turns and name != "quire":
            row["quire_times"] = quire_times(turns["quire"], taken)
        rows.append(row)
        print(line(row), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    rate, first = row["tokens_per_s"], row["first_token_s"]
    ratio = f"{row['quire_times']['median']:8.2f} ×" if "quire_times" in row else ""
    return (
        f"{row['model']:6} {row['sequences']:5d} {row['engine']:13}"
        f"{rate['median']:9.1f} tok/s  ({rate['min']:.1f} to {rate['max']:.1f})".ljust(66)
        + f"first token {first['median'] * 1e3:8.1f} ms{ratio}"
    )


def main() -> int:
    options = arguments(__doc__, "offline", "sequences", {name: engine.python for name, engine in ENGINES.items()})
    result: dict[str, Any] = {
        "what": f"offline generation in process, greedy, bfloat16, {PROMPT} tokens in, {OUTPUT} out, all at once",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/offline.py", *sys.argv[1:]]),
        "options": options_of(vars(options)),
        "machine": {**machine.describe(), "threads": len(CPUS)},
        "environment": {name: ENVIRONMENT | ENGINES[name].environment for name in options.engines},
        "versions": {},
        "starts": [],
        "rows": [],
    }
    for model in options.models:
        write_model(model, CACHE / model)
        if "llama.cpp" in options.engines and not (CACHE / model / "model.gguf").exists():
            subprocess.run([PEERS, HERE / "models.py", CACHE / model], check=True)
        cells = options.sequences or CELLS[model]
        with contextlib.ExitStack() as stack:
            fleet, starts = start(options.engines, Running, model, max(cells), stack)
            result["versions"] |= {name: running.versions for name, running in fleet.items()}
            result["starts"] += starts
            for sequences in cells:
                result["rows"] += cell(fleet, model, sequences, options.rounds)
    write(result, [line(row) for row in result["rows"]], options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
