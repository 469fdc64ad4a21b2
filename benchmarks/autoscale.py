#!/usr/bin/env python3
"""The autoscaler beside HPA's algorithm on 200 generated loads, in simulated time (about ten minutes on two cores).

HPA has eleven targets, four of queue length and seven of KV use, and on each load the best of them, chosen afterwards. A load is
won when no target reaches our 95th percentile of queue time (within 0.1 s) with as few engine-hours.
"""

import argparse
import json
from dataclasses import asdict
from multiprocessing import Pool
from pathlib import Path
from typing import Any

from quire_operator.planner.autoscale import Policy
from quire_operator.simulate.compare import Comparison, compare
from quire_operator.simulate.drawing import draw
from quire_operator.simulate.fleet import simulate
from quire_operator.simulate.loads import KINDS, generate
from quire_operator.simulate.policies import builtin, hpa, kv_use, queue_length

RESULTS = Path(__file__).parent / "results"
DRAWN = 17  # the load of the plot: bursts, a cold start of 41 s


def one(seed: int) -> Comparison:
    return compare(generate(seed))


def summary(results: list[Comparison]) -> dict[str, Any]:
    def share(wins: list[bool]) -> float:
        return round(sum(wins) / len(wins), 3)

    def fixed(of: str, target: float) -> dict[str, float]:
        scores = [(r, getattr(r, of)[target]) for r in results]
        return {
            "both": share([r.beats(s) for r, s in scores]),
            "queue_no_worse": share([r.ours.queue_p95_s <= s.queue_p95_s + 0.1 for r, s in scores]),
            "fewer_hours": share([r.ours.engine_hours < s.engine_hours for r, s in scores]),
            "their_hours": round(sum(s.engine_hours for _, s in scores), 1),
        }

    return {
        "loads": len(results),
        "most_reversals_in_a_stable_window": max(r.reversals for r in results),
        "won_against_the_best_queue_target": share([r.wins(r.queue) for r in results]),
        "won_against_the_best_kv_target": share([r.wins(r.kv_use) for r in results]),
        "by_kind": {k: share([r.wins(r.kv_use) for r in results if r.kind == k]) for k in KINDS},
        "our_hours": round(sum(r.ours.engine_hours for r in results), 1),
        "queue_target_4": fixed("queue", 4.0),
        "kv_target_0.75": fixed("kv_use", 0.75),
        "kv_target_0.6": fixed("kv_use", 0.6),
    }


def write(results: list[Comparison], folder: Path) -> None:
    said = {"what": __doc__, "summary": summary(results), "loads": [asdict(r) for r in results]}
    (folder / "autoscale.json").write_text(json.dumps(said, indent=1) + "\n")
    load = generate(DRAWN)
    policy = Policy(least=1, most=16, cold_start_s=load.engine.cold_start_s)
    runs = {
        "Builtin": simulate(load, builtin(policy)).steps,
        "HPA, 4 waiting": simulate(load, hpa(queue_length, 4.0, 1, 16)).steps,
        "HPA, KV use": simulate(load, hpa(kv_use, 0.5, 1, 16)).steps,
    }
    (folder / "autoscale.svg").write_text(draw(f"load {DRAWN}: {load.kind}", load, runs))
    print(json.dumps(said["summary"], indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with Pool() as pool:
        write(pool.map(one, range(arguments.loads), chunksize=1), arguments.folder)


if __name__ == "__main__":
    main()
