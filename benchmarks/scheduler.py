#!/usr/bin/env python3
"""What the scheduler costs: microseconds for each running request and step, with a runner that computes nothing.

Requests decode side by side, with a block to take every 16th step and prefix caching on, as the engine runs them. The
JSON goes to benchmarks/results/.
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

from quire_engine.core.blocks import BlockPool
from quire_engine.core.memory import Memory
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.scheduler import Limits, Scheduler
from quire_engine.core.step import StepPlan, StepResult
from quire_engine.engine import Engine

RESULTS = Path(__file__).resolve().parent / "results"


class NullRunner:
    """Answers each chunk that samples with token 1, at once."""

    def launch(self, plan: StepPlan) -> "NullRunner":
        self._tokens = [1] * sum(plan.samples)
        return self

    def result(self) -> StepResult:
        return StepResult(tokens=self._tokens)


def microseconds(running: int, steps: int) -> float:
    """Of one step, divided by the requests that run in it."""
    blocks = running * (-(-(128 + steps + 8) // 16) + 2)
    limits = Limits(
        max_num_seqs=running, max_num_batched_tokens=1 << 16, max_model_len=4096, long_prefill_tokens=1 << 16
    )
    scheduler = Scheduler(Memory(BlockPool(blocks, 16), BlockPool(0, 16)), limits, [b""] * 4096)
    for number in range(running):
        prompt = tuple((7 * i + 31 * number) % 4096 for i in range(128))
        scheduler.add(Request(id=RequestId(number), prompt=prompt, params=TokenParams(max_tokens=steps + 4)))
    engine = Engine(scheduler, NullRunner())
    engine.step()
    started = time.perf_counter()
    for _ in range(steps):
        engine.step()
    return (time.perf_counter() - started) / steps / running * 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    rows = []
    for running in arguments.running:
        runs = [microseconds(running, arguments.steps) for _ in range(arguments.runs)]
        rows.append({"running": running, "median": statistics.median(runs), "min": min(runs), "max": max(runs)})
        print(
            f"{running:5d} running  {statistics.median(runs):6.2f} us each and step  ({min(runs):.2f} to {max(runs):.2f})"
        )
    result = {
        "what": "schedule and commit, microseconds for each running request and step",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/scheduler.py", *sys.argv[1:]]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version()},
        "rows": rows,
    }
    path = RESULTS / f"scheduler-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
