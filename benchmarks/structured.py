#!/usr/bin/env python3
"""What grammars cost: tokens a second of a batch in which every answer follows a JSON schema, beside the same batch without.

The engine in this process, closed loop, fixed lengths: the schema is of a list that does not end before the answer does.
Runs with and without take turns after a warm-up, so that what else the machine does meets both. The first grammar's time
is apart: it starts a process, and loads a library. The JSON goes to benchmarks/results/.
"""

import argparse
import json
import statistics
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import machine
import torch

from quire_api import EngineConfig
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Grammar, Request, RequestId, TokenParams
from quire_engine.grammars.asked import StructuredOutputs, grammar_of

RESULTS = Path(__file__).resolve().parent / "results"
ENTRY = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
    },
    "required": ["name", "age", "kind"],
}
SCHEMA = {"type": "array", "items": ENTRY, "minItems": 1000}


def tokens_per_s(built: BuiltEngine, users: int, prompt: int, output: int, grammar: Grammar | None) -> float:
    params = TokenParams(
        max_tokens=output, temperature=0.0, grammar=grammar, stop_token_ids=built.spec.end_tokens if grammar else frozenset()
    )  # fmt: skip
    for number in range(users):
        ids = tuple((7 * i + 31 * number) % 1000 + 3 for i in range(prompt))
        built.engine.add(Request(id=RequestId(number), prompt=ids, params=params))
    tokens, started = 0, time.perf_counter()
    while built.engine.has_work:
        tokens += len(built.engine.step().ids)
    if tokens != users * output:
        raise SystemExit(f"{tokens} tokens came, not {users} × {output}")
    return tokens / (time.perf_counter() - started)


def first_grammar_ms(built: BuiltEngine, grammar: Grammar) -> float:
    """From the request to its first token, when there was none before."""
    started = time.perf_counter()
    tokens_per_s(built, 1, 4, 1, grammar)
    return (time.perf_counter() - started) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin://quire-tiny")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--prompt", type=int, default=128, help="tokens (default 128)")
    parser.add_argument("--output", type=int, default=64, help="tokens (default 64)")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    built = build_engine(EngineConfig(model=arguments.model, dtype=arguments.dtype))
    built.warm_up()
    grammar = grammar_of(StructuredOutputs(json=SCHEMA))
    first = first_grammar_ms(built, grammar)
    print(f"first token of the first grammar {first:.0f} ms")
    rows = []
    for users in arguments.users:
        pairs = [
            [tokens_per_s(built, users, arguments.prompt, arguments.output, each) for each in (None, grammar)]
            for _ in range(arguments.runs + 1)
        ][1:]
        ratios = [structured / plain for plain, structured in pairs]
        row = {
            "users": users,
            "plain_tokens_per_s": statistics.median(plain for plain, _ in pairs),
            "structured_tokens_per_s": statistics.median(structured for _, structured in pairs),
            "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        }
        rows.append(row)
        print(
            f"{users:5d} users  plain {row['plain_tokens_per_s']:9.0f} tok/s  by schema "
            f"{row['structured_tokens_per_s']:9.0f} tok/s  {statistics.median(ratios):.3f}"
        )
    result = {
        "what": "engine in process, greedy, closed loop: every answer by a JSON schema beside none",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["benchmarks/structured.py", *sys.argv[1:]]),
        "options": vars(arguments),
        "machine": {**machine.describe(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "schema": SCHEMA,
        "first_grammar_ms": first,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"structured-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
