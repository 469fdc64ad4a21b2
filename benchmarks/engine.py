#!/usr/bin/env python3
"""`make bench`: the engine in this process, without HTTP: tokens a second by number of concurrent requests.

Closed loop, greedy, fixed lengths, three runs after a warm-up; the median and the spread go to a JSON file. A figure
here is for comparison with the same command on the same machine, not a claim.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from quire_api import EngineConfig
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Request, RequestId, TokenParams

RESULTS = Path(__file__).resolve().parent / "results"


def run(built: BuiltEngine, users: int, prompt: int, output: int) -> dict[str, float]:
    """All requests at once; seconds to the first token of the last one, and tokens a second."""
    params = TokenParams(max_tokens=output, temperature=0.0)
    for number in range(users):
        ids = tuple((7 * i + 31 * number) % 1000 + 3 for i in range(prompt))
        built.engine.add(Request(id=RequestId(number), prompt=ids, params=params))
    begun: set[int] = set()
    tokens, last_first = 0, 0.0
    started = time.perf_counter()
    while built.engine.has_work:
        ids = built.engine.step().ids
        tokens += len(ids)
        if not begun.issuperset(ids):
            begun.update(ids)
            last_first = time.perf_counter() - started
    return {"tokens_per_s": tokens / (time.perf_counter() - started), "last_first_token_s": last_first}


def first_token_ms(built: BuiltEngine, prompt: int, number: int) -> float:
    """Of one request whose prompt is the same each time."""
    ids = tuple((7 * i) % 1000 + 3 for i in range(prompt))
    params = TokenParams(max_tokens=1, temperature=0.0)
    started = time.perf_counter()
    built.engine.add(Request(id=RequestId(number), prompt=ids, params=params))
    while built.engine.has_work:
        built.engine.step()
    return (time.perf_counter() - started) * 1e3


def shared_prompt(config: EngineConfig, prompt: int, runs: int) -> dict[str, object]:
    """Time to the first token when the prompt is new, and when the prefix cache knows it."""
    colds, warms = [], []
    for _ in range(runs):
        built = build_engine(config)
        built.warm_up()
        colds.append(first_token_ms(built, prompt, 0))
        warms += [first_token_ms(built, prompt, n) for n in range(1, 6)]
    cold, warm = statistics.median(colds), statistics.median(warms)
    print(
        f"{prompt} tokens of shared prompt: first token {cold:.1f} ms cold, {warm:.1f} ms warm, {cold / warm:.0f} times"
    )
    return {"prompt": prompt, "cold_ms": cold, "warm_ms": warm, "ratio": cold / warm}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin://quire-tiny")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--output", type=int, default=64, help="tokens (default 64)")
    parser.add_argument(
        "--shared", type=int, default=2000, help="tokens of the prompt that is asked twice (default 2000)"
    )
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    config = EngineConfig(model=arguments.model, dtype=arguments.dtype)
    built = build_engine(config)
    rows = []
    for users in arguments.users:
        run(built, users, arguments.prompt, arguments.output)
        runs = [run(built, users, arguments.prompt, arguments.output) for _ in range(arguments.runs)]
        rates = [r["tokens_per_s"] for r in runs]
        firsts = [r["last_first_token_s"] for r in runs]
        rows.append(
            {
                "users": users,
                "tokens_per_s": {"median": statistics.median(rates), "min": min(rates), "max": max(rates)},
                "last_first_token_s": {"median": statistics.median(firsts), "min": min(firsts), "max": max(firsts)},
            }
        )
        print(
            f"{users:5d} users  {statistics.median(rates):9.0f} tok/s  last first token {statistics.median(firsts) * 1e3:7.1f} ms"
        )
    result = {
        "what": "engine in process, greedy, closed loop",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/engine.py", *sys.argv[1:]]),
        "options": vars(arguments),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "rows": rows,
        "shared_prompt": shared_prompt(config, arguments.shared, arguments.runs),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"engine-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")
    return 0


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
