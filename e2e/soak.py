#!/usr/bin/env python3
"""`make soak`: an engine under requests at random, and under twice the load that it can bear, on all cores and on one.

Passes if the engine never ends, is never called hung, leaves nothing behind and its memory does not grow. `make soak LONG=1`
is ten minutes of too much load by prompts of 8,000 tokens, and as long again for what waits then to be answered: quire-tiny with more positions
than it was trained for, whose answers mean nothing.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fakes.controls import Controls  # after the path above
from fakes.fuzzing import fuzz, growth, settled
from fakes.serving import Running, children, serving

from quire_engine.locate import locate_model

TINY = "builtin://quire-tiny"
OPTIONS = ("--dtype=float32", "--max-num-seqs=16", "--served-model-name=quire-tiny")
MOST_GROWTH_KIB = 16 << 10  # over the second half
PROMPT_TOKENS, OUTPUT_TOKENS = 2000, 16
TRIAL_TOKENS = 64 * PROMPT_TOKENS  # of prompts, by which is measured what it can do
OVERLOAD = 2.0
CACHE_GIB_PER_TOKEN = 0.05 / 2048  # of the longest request: room for a few of them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="at random, for each way of caching")
    parser.add_argument("--seconds", type=float, default=120.0, help="of too much load, for each number of cores")
    parser.add_argument("--prompt", type=int, default=PROMPT_TOKENS, help="tokens of those prompts (default 2000)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for caching in ("--enable-prefix-caching", "--no-enable-prefix-caching") if arguments.requests else ():
        started = time.monotonic()
        _at_random(arguments.requests, arguments.seed, caching)
        print(f"   passed in {time.monotonic() - started:.0f} s", flush=True)
    for cores in sorted({len(os.sched_getaffinity(0)), 1}) if arguments.seconds else ():
        started = time.monotonic()
        _saturated(arguments.seconds, arguments.seed, cores, arguments.prompt)
        print(f"   passed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def ten_thousand_at_random() -> None:
    """10,000 requests at random, valid or not: no exit, nothing left, no growth, and nobody else notices"""
    _at_random(10_000, 1, "--no-enable-prefix-caching")


def two_minutes_of_too_much() -> None:
    """two minutes of twice the load that an engine can bear: it is never called hung"""
    _saturated(120.0, 1, len(os.sched_getaffinity(0)), PROMPT_TOKENS)


SOAK = (ten_thousand_at_random, two_minutes_of_too_much)  # of `make e2e`


def _at_random(number: int, seed: int, caching: str) -> None:
    print(f"== {number} requests at random, {caching}", flush=True)
    options = (TINY, *OPTIONS, "--kv-cache-gib=0.05", caching)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "serve", *options) as server:
        engine = children(server.process.pid)[0]
        with Controls(server) as controls:
            outcome = fuzz(server, number, seed, samples=200)
        api_growth, engine_growth = (growth(list(each)) for each in zip(*outcome.resident, strict=True))
        print(f"   {dict(sorted(outcome.seen.items()))}, {controls.compared} controls", flush=True)
        print(f"   resident at the end {[kib >> 10 for kib in outcome.resident[-1]]} MiB; growth in the second half "
              f"{api_growth / 1024:.1f} and {engine_growth / 1024:.1f} MiB", flush=True)  # fmt: skip
        assert outcome.wrong == [], "\n".join(outcome.wrong[:5])
        assert controls.wrong == [], controls.wrong[:5]
        assert children(server.process.pid)[0] == engine, "the engine process is another"
        assert not any(settled(server).values()), settled(server, 0)
        assert "Traceback" not in server.log.read_text(), server.log.read_text()[-3000:]
        assert max(api_growth, engine_growth) < MOST_GROWTH_KIB, "memory grows"


def _saturated(seconds: float, seed: int, cores: int, prompt: int) -> None:
    print(
        f"== {OVERLOAD:g} times the load it can bear for {seconds:g} s, {prompt} tokens each, on {cores} cores",
        flush=True,
    )
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(ours)[:cores])  # what is started has them too
    try:
        with tempfile.TemporaryDirectory() as folder:
            model, length = _with_room(Path(folder) / "model", prompt + OUTPUT_TOKENS)
            options = (str(model), *OPTIONS, f"--kv-cache-gib={CACHE_GIB_PER_TOKEN * length:.3f}")
            with serving(Path(folder), "serve", *options) as server:
                os.sched_setaffinity(0, ours)
                rate, seen = asyncio.run(_overload(server, seconds, random.Random(seed), prompt))
                assert not any(settled(server).values()), settled(server, 0)
            print(f"   it can do {rate:.1f} requests a second; {dict(seen)}", flush=True)
            assert set(seen) == {"livez 200", "answered 200"}, server.log.read_text()[-3000:]
    finally:
        os.sched_setaffinity(0, ours)


def _with_room(folder: Path, length: int) -> tuple[Path, int]:
    """quire-tiny, and its positions: as many as are needed, if it has too few."""
    shutil.copytree(locate_model(TINY), folder)
    config = json.loads((folder / "config.json").read_text())
    config["max_position_embeddings"] = max(length, config["max_position_embeddings"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder, config["max_position_embeddings"]


async def _overload(server: Running, seconds: float, dice: random.Random, prompt: int) -> tuple[float, Counter[str]]:
    """Requests a second that it can do, and statuses under more than that, sent without waiting for answers."""
    seen: Counter[str] = Counter()

    async def ask() -> None:
        body = {"model": "quire-tiny", "prompt": [dice.randrange(1024) for _ in range(prompt)]}
        data = json.dumps({**body, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}).encode()
        seen[f"answered {await _status(server.port, 'POST', '/v1/completions', data)}"] += 1

    async def watch() -> None:
        while True:
            seen[f"livez {await _status(server.port, 'GET', '/livez', b'')}"] += 1
            await asyncio.sleep(0.25)

    watching = asyncio.create_task(watch())
    started, number = time.monotonic(), max(8, TRIAL_TOKENS // prompt)
    await asyncio.gather(*(ask() for _ in range(number)))
    rate = number / (time.monotonic() - started)
    async with asyncio.TaskGroup() as group:
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            group.create_task(ask())
            await asyncio.sleep(dice.expovariate(OVERLOAD * rate))
    watching.cancel()
    return rate, seen


async def _status(port: int, method: str, path: str, body: bytes) -> str:
    """Or how there was none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        )
        writer.write(body)
        answer = await reader.read(-1)
        writer.close()
        return answer[9:12].decode() or "closed"
    except OSError as error:
        return type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
