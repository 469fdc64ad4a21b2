"""One model's shape: started, measured at every load, once more without recorded steps, and beside transformers."""

import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loads import Loads, build

from quire_api.footprint import ModelShape
from quire_engine.runtime.roofline import Limits

__all__ = ["FULL", "SMALL", "Plan", "measure_model"]

Part = Callable[[str, float, Callable[[], Any]], Any]  # name, seconds it may take, work


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    batches: tuple[int, ...]
    context: int  # tokens before those that are written
    steps: int  # measured
    prompts: tuple[int, ...]
    repeat: int
    users: int  # of the mixed load, with so long prompts and answers
    prompt: int
    output: int
    peer: int  # users of transformers
    peer_output: int

    @property
    def few(self) -> tuple[int, int]:
        """Batches of which more is asked."""
        return 1, min(32, max(self.batches))


FULL = Plan(
    batches=(1, 8, 32, 64, 128, 256), context=1024, steps=48, prompts=(512, 1024, 2048, 4096, 8192), repeat=3,
    users=128, prompt=1000, output=1000, peer=32, peer_output=64,
)  # fmt: skip
SMALL = Plan(
    batches=(1, 3), context=20, steps=4, prompts=(40,), repeat=1,
    users=3, prompt=20, output=12, peer=2, peer_output=4,
)  # fmt: skip


def measure_model(part: Part, name: str, folder: Path, device: str, roof: Limits, plan: Plan) -> None:
    options = {**_room(folder, plan), "device": device, "dtype": "bfloat16"}
    started: list[Loads] = []

    def start() -> dict[str, Any]:
        begun = time.perf_counter()
        built = build(folder, **options)
        built.warm_up()
        started.append(Loads(built, roof))
        sizes = built.sizes
        return {
            "seconds_to_first_token": time.perf_counter() - begun,
            "kv_cache_bytes": sizes.kv_cache_bytes,
            "step_bytes": sizes.step_bytes,
        }

    def eager() -> list[dict[str, Any]]:
        built = build(folder, **options, enforce_eager=True)
        built.warm_up()
        return [Loads(built, roof).decode(batch, plan.context, plan.steps) for batch in plan.few]

    part(f"{name} start", 30, start)
    for load in started:  # none, if it did not start
        _measure(part, name, load, plan)
    started.clear()
    _release()
    part(f"{name} eager", 40, eager)
    _release()
    part(f"{name} transformers", 60, lambda: _peer(folder, device, plan))


def _measure(part: Part, name: str, load: Loads, plan: Plan) -> None:
    for batch in plan.batches:
        part(f"{name} decode {batch}", 20, lambda batch=batch: load.decode(batch, plan.context, plan.steps))
    for length in plan.prompts:
        part(f"{name} prefill {length}", 15, lambda length=length: load.prefill(length, plan.repeat))
    part(f"{name} mixed", 60, lambda: load.mixed(plan.users, plan.prompt, plan.output))
    for batch in plan.few:
        part(
            f"{name} where the time of {batch} goes", 15,
            lambda batch=batch: load.where_time_goes(batch, plan.context, plan.steps),
        )  # fmt: skip


def _room(folder: Path, plan: Plan) -> dict[str, Any]:
    shape = ModelShape.from_config(json.loads((folder / "config.json").read_text()))
    most = max(plan.batches)
    tokens = max(most * (plan.context + plan.steps + 100), plan.users * (plan.prompt + plan.output + 32))
    gib = 1.2 * tokens * shape.kv_bytes_per_token("bfloat16") / 2**30
    return {"kv_cache_gib": gib + 0.01, "max_num_seqs": max(most, plan.users)}


def _release() -> None:
    """What nobody holds any more goes back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _peer(folder: Path, device: str, plan: Plan) -> dict[str, Any]:
    if importlib.util.find_spec("transformers") is None:
        raise RuntimeError("transformers is not installed here")
    users = [str(number) for number in (plan.peer, plan.prompt, plan.peer_output)]
    command = [sys.executable, str(Path(__file__).with_name("peer.py")), str(folder), device, "bfloat16", *users]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-1500:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
