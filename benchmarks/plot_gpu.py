#!/usr/bin/env python3
"""Draw a result of `make gpu` as an SVG beside it: each load as a bar of its share of the roofline. No library.

benchmarks/plot_gpu.py benchmarks/results/gpu-….json
"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

__all__ = ["draw"]

LEFT, WIDTH, LINE, TOP, RIGHT = 150, 420, 22, 60, 130  # pixels
COLOUR, PALE = "#1b6e53", "#e3ece8"


def draw(found: dict[str, Any]) -> str:
    points = [
        (name, part["result"]) for name, part in found["parts"].items()
        if isinstance(part.get("result"), dict) and "ratio" in part["result"]
    ]  # fmt: skip
    height = TOP + LINE * len(points) + 20
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{LEFT + WIDTH + RIGHT}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(found["device"])}: share of the roofline</text>',
        f'<text x="{LEFT}" y="42" fill="#555">torch {escape(str(found["versions"]["torch"]))}, {escape(found["at"])}</text>',
    ]
    for number, (name, point) in enumerate(points):
        y = TOP + LINE * number
        share = min(1.0, max(0.0, point["ratio"]))
        lines += [
            f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH}" height="{LINE - 6}" fill="{PALE}"/>',
            f'<rect x="{LEFT}" y="{y}" width="{WIDTH * share:.1f}" height="{LINE - 6}" fill="{COLOUR}"/>',
            f'<text x="{LEFT + WIDTH + 8}" y="{y + 13}">{point["ratio"]:.0%}, {point["tokens_per_s"]:,.0f} tok/s</text>',
        ]
    return "\n".join([*lines, "</svg>\n"])


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".svg").write_text(draw(json.loads(source.read_text())))
    print(f"wrote {source.with_suffix('.svg')}")
