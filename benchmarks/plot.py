#!/usr/bin/env python3
"""Draw a result of benchmarks/offline.py as an SVG beside it. Runs in .venv-peers, where matplotlib is."""

import json
import sys
from pathlib import Path

import matplotlib  # type: ignore[import-not-found]

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "quire", "svg.fonttype": "none", "font.size": 9}

from matplotlib import pyplot  # noqa: E402  # after the backend

COLOURS = {"quire": "#1b6e53", "vllm": "#c77d1e", "llama.cpp": "#6a5acd", "transformers": "#9a9a9a"}


def draw(source: Path) -> Path:
    result = json.loads(source.read_text())
    cells = list(dict.fromkeys((row["model"], row["sequences"]) for row in result["rows"]))
    figure, panels = pyplot.subplots(1, len(cells), figsize=(2.6 * len(cells), 3.2), squeeze=False)
    for panel, (model, sequences) in zip(panels[0], cells, strict=True):
        rows = [row for row in result["rows"] if (row["model"], row["sequences"]) == (model, sequences)]
        rates = [row["tokens_per_s"] for row in rows]
        names = [row["engine"] for row in rows]
        heights = [rate["median"] for rate in rates]
        spread = [[r["median"] - r["min"] for r in rates], [r["max"] - r["median"] for r in rates]]
        bars = panel.bar(names, heights, yerr=spread, capsize=3, color=[COLOURS[name] for name in names])
        panel.bar_label(bars, fmt="{:,.0f}", padding=2)
        panel.set_title(f"{model}, {sequences} at once")
        panel.tick_params(axis="x", rotation=35)
        panel.spines[["top", "right"]].set_visible(False)
        panel.margins(y=0.15)
    panels[0][0].set_ylabel("output tokens/s")
    figure.suptitle(f"{result['what']}\n{result['machine']['cpu']}, {result['machine']['threads']} threads")
    figure.tight_layout()
    target = source.with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    return target


if __name__ == "__main__":
    print(f"wrote {draw(Path(sys.argv[1]))}")
