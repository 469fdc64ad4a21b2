#!/usr/bin/env python3
"""README's table of GPUs, from the newest result of `make gpu`: `make generate` writes it, `make check` sees that it is fresh.

Standard library only. A result of `--smoke` is none, nor is one without a GPU.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["block", "fresh", "newest"]

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- made by benchmarks/gpu_table.py -->", "<!-- until here -->"
NOTHING = "On GPUs: not yet measured."


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """By the time that is in it."""
    found = [(path, json.loads(path.read_text())) for path in folder.glob("gpu-*.json")]
    real = [each for each in found if not each[1]["smoke"] and each[1]["device"] != "cpu"]
    return max(real, key=lambda each: str(each[1]["at"]), default=None)


def block(result: tuple[Path, dict[str, Any]] | None) -> str:
    """What stands between the two marks."""
    if result is None:
        return NOTHING
    path, found = result
    versions = found["versions"]
    lines = [
        f"On one {found['device']}, torch {versions['torch']}, triton {versions['triton']}, bfloat16, made-up weights, in process "
        f"([JSON](benchmarks/results/{path.name}), [how to read it](docs/performance.md)):",
        "",
        "| shape | load | tok/s | of the roofline |",
        "|---|---|---|---|",
        *_rows(found["parts"]),
    ]
    return "\n".join(lines)


def _rows(parts: dict[str, Any]) -> Iterator[str]:
    for name, part in parts.items():
        point = part.get("result")
        if isinstance(point, dict) and "ratio" in point:
            shape, _, load = name.partition(" ")
            yield f"| {shape} | {load} | {point['tokens_per_s']:,.0f} | {point['ratio']:.0%} |"


def fresh(readme: str, text: str) -> str:
    """README with this block in it."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md: expected {BEGIN} and {END}, and found not both: put them where the table goes")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> int:
    readme = README.read_text()
    wanted = fresh(readme, block(newest(RESULTS)))
    if "--check" in sys.argv[1:]:
        if wanted != readme:
            print("README.md: its table of GPUs is stale: run `make generate`", file=sys.stderr)
        return int(wanted != readme)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
