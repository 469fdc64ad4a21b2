#!/usr/bin/env python3
"""Quire beside vLLM, llama.cpp and transformers on this machine's CPU: offline generation, no HTTP.

Each engine is a process that stays: benchmarks/adapters. While one is measured the others are stopped by a signal,
and turns go round, so that whatever slows the machine meets all of them. All sequences begin at once, greedy, with
fixed lengths and a new seed each time. A turn that other processes disturbed is taken again.

This file decides what is measured, when, and what is kept; it imports no engine. Quire runs in .venv, its peers in
.venv-peers, which benchmarks/peers/setup.sh makes. The JSON and a plot of it go to benchmarks/results/.
"""

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import machine
from models import MODELS, write_model

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quire-bench"

PROMPT, OUTPUT = 128, 64  # tokens
LENGTH = 256  # of a sequence, at most; a multiple of every engine's block
CELLS = {"tiny": [1, 32, 128], "0.45b": [1, 16]}  # model -> sequences at once
STARTS = 2  # the first may compile what the second finds
TURN_S = 1.5  # short generations are repeated for so long
QUIET = 0.05  # share of the machine that others may use
PATIENCE_S = 600.0  # to wait for that
ATTEMPTS = 3  # at an undisturbed turn

CPUS = sorted(os.sched_getaffinity(0))
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(CPUS))}


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
                "OMP_NUM_THREADS": None,  # it binds threads itself, and warns of this variable
                "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CPUS)),
                "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process beats three where cores are few
                "VLLM_NO_USAGE_STATS": "1",
            },
        ),
        Engine("llama.cpp", "adapters.llama_cpp", PEERS),
        Engine("transformers", "adapters.transformers", PEERS),
    )
}
SEEDS = itertools.count(1)  # no prompt comes twice: nothing is found in a prefix cache


class Running:
    """One engine with one model. Stopped from `pause` to `resume`."""

    def __init__(self, engine: Engine, model: str, most: int) -> None:
        self._log = CACHE / "logs" / f"{engine.name}-{model}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **ENVIRONMENT, **engine.environment}
        self._process = subprocess.Popen(
            [engine.python, "-m", engine.module, CACHE / model, str(most), str(LENGTH), str(len(CPUS))],
            cwd=HERE,
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            start_new_session=True,  # so that a signal reaches its children too
        )
        self.group = self._process.pid
        self.versions: dict[str, str] = self._read()["versions"]

    def generate(self, sequences: int, output: int, seed: int | None = None) -> dict[str, Any]:
        command = {
            "sequences": sequences,
            "prompt_tokens": PROMPT,
            "output_tokens": output,
            "seed": next(SEEDS) if seed is None else seed,
        }
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        reply = self._read()
        if reply["output_tokens"] != sequences * output:
            raise RuntimeError(f"{self._log.stem}: {reply['output_tokens']} tokens, not {sequences} × {output}")
        return reply

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"{self._log.stem} ended; the end of {self._log}:\n{self._log.read_text()[-3000:]}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def pause(self) -> None:
        os.killpg(self.group, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.group, signal.SIGCONT)

    def close(self) -> None:
        """May be called again: what is gone is gone."""
        with contextlib.suppress(ProcessLookupError, BrokenPipeError):
            self.resume()
            assert self._process.stdin
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
            os.killpg(self.group, signal.SIGKILL)


def wait_for_quiet() -> None:
    """Returns when nothing else runs, or patience is at its end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        others = machine.Others(group=-1)
        time.sleep(0.5)
        if others.share() <= QUIET:
            return


def turn(running: Running, sequences: int) -> dict[str, float]:
    """One engine's part of a round: the least disturbed of some attempts."""
    attempts = []
    for _ in range(ATTEMPTS):
        wait_for_quiet()
        running.resume()
        others = machine.Others(running.group)
        firsts: list[float] = []
        seconds, tokens = 0.0, 0
        while not firsts or seconds + sum(firsts) < TURN_S:
            firsts.append(running.generate(sequences, 1)["seconds"])
            reply = running.generate(sequences, OUTPUT)
            seconds += reply["seconds"]
            tokens += reply["output_tokens"]
        share = others.share()
        running.pause()
        attempts.append(
            {"tokens_per_s": tokens / seconds, "first_token_s": statistics.median(firsts), "others_share": share}
        )
        if share <= QUIET:
            break
    return min(attempts, key=lambda attempt: attempt["others_share"])


def start(engines: list[Engine], model: str, most: int, fleet: contextlib.ExitStack) -> list[dict[str, Any]]:
    """Every engine, STARTS times: seconds from nothing to the first token. The last ones stay, paused."""
    rows: list[dict[str, Any]] = [{"engine": engine, "model": model, "seconds": []} for engine in engines]
    for attempt in range(STARTS):
        for row in rows:
            wait_for_quiet()
            started = time.monotonic()
            running = Running(row["engine"], model, most)
            fleet.callback(running.close)
            running.generate(1, 1)
            row["seconds"].append(time.monotonic() - started)
            print(
                f"{model:6} {row['engine'].name:12} first token {row['seconds'][-1]:6.1f} s after its start", flush=True
            )
            if attempt < STARTS - 1:
                running.close()
                continue
            running.pause()
            row["running"] = running
    return rows


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


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
            turns[name].append(turn(running, sequences))
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
            pairs = zip(turns["quire"], taken, strict=True)
            row["quire_times"] = summary([ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs])
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


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, nargs="+", help="at once; default: 1, 32, 128 (tiny), 1, 16 (0.45b)")
    default = HERE / "results" / f"offline-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON; the plot lies beside it")
    options = parser.parse_args()
    peers = [name for name in options.engines if ENGINES[name].python == PEERS]
    if peers and not PEERS.exists():
        parser.error(f"{', '.join(peers)}: not installed; run benchmarks/peers/setup.sh, or choose with --engines")
    return options


def main() -> int:
    options = arguments()
    engines = [ENGINES[name] for name in options.engines]
    result: dict[str, Any] = {
        "what": f"offline generation in process, greedy, bfloat16, {PROMPT} tokens in, {OUTPUT} out, all at once",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/offline.py", *sys.argv[1:]]),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "machine": {**machine.describe(), "threads": len(CPUS)},
        "environment": {engine.name: ENVIRONMENT | engine.environment for engine in engines},
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
            started = start(engines, model, max(cells), stack)
            fleet = {row["engine"].name: row["running"] for row in started}
            result["versions"] |= {name: running.versions for name, running in fleet.items()}
            result["starts"] += [
                {"model": model, "engine": row["engine"].name, "seconds": row["seconds"]} for row in started
            ]
            for sequences in cells:
                result["rows"] += cell(fleet, model, sequences, options.rounds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(["", *map(line, result["rows"]), f"wrote {options.out}"]))
    if PEERS.exists():
        subprocess.run([PEERS, HERE / "plot.py", options.out], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
