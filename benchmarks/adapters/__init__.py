"""One engine in one process, behind lines of JSON: the conductor is benchmarks/offline.py, the protocol is `serve`.

An adapter knows its engine and nothing of the measurement; this file knows neither torch nor an engine. Prompts and
clock are here, so that they are the same for all.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

Generate = Callable[[list[list[int]], int], list[list[int]]]  # prompts, tokens of each to make -> those of each
SAMPLE = 16  # tokens, to see that all engines run the same model


@dataclass(frozen=True)
class Setting:
    folder: Path  # the checkpoint
    most: int  # sequences at once
    length: int  # tokens of a sequence, prompt and output
    threads: int


def serve(load: Callable[[Setting], Generate], packages: tuple[str, ...]) -> None:
    """argv: folder, most, length, threads. First a line with versions; then for each command a reply:

    {"sequences": 2, "prompt_tokens": 128, "output_tokens": 64, "seed": 0}
    -> {"seconds": 0.5, "output_tokens": 128, "sample": the first sequence's first tokens}
    """
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what engines print belongs into the log
    folder, most, length, threads = sys.argv[1:]
    setting = Setting(Path(folder), int(most), int(length), int(threads))
    vocabulary = json.loads((setting.folder / "config.json").read_text())["vocab_size"]
    generate = load(setting)
    print(json.dumps({"versions": {package: version(package) for package in packages}}), file=replies)
    for line in sys.stdin:
        command = json.loads(line)
        choose = random.Random(command["seed"])
        prompts = [
            [choose.randrange(3, vocabulary) for _ in range(command["prompt_tokens"])]
            for _ in range(command["sequences"])
        ]
        started = time.perf_counter()
        outputs = generate(prompts, command["output_tokens"])
        seconds = time.perf_counter() - started
        reply = {"seconds": seconds, "output_tokens": sum(map(len, outputs)), "sample": outputs[0][:SAMPLE]}
        print(json.dumps(reply), file=replies)
    os._exit(0)  # at once: threads of an engine may go on for ever
