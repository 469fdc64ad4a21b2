#!/usr/bin/env python3
"""Draw a result of benchmarks/offline.py or serving.py as an SVG beside it. Runs in .venv-peers, where matplotlib is."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib  # type: ignore[import-not-found]

matplotlib.use("svg")
matplotlib.rcParams |= {"svg.hashsalt": "quire", "svg.fonttype": "none", "font.size": 9}

from matplotlib import pyplot  # noqa: E402  # after the backend

COLOURS = {
    "quire": "#1b6e53",
    "vllm": "#c77d1e",
    "vllm-bound": "#e2b565",
    "llama.cpp": "#6a5acd",
    "transformers": "#9a9a9a",
}


FORMATS = {"tokens_per_s": "{:,.0f}", "ttft_ms": "{:,.1f}", "tpot_ms": "{:,.2f}", "e2el_ms": "{:,.0f}"}
MEASURES = {
    "tokens_per_s": "output tokens/s",
    "ttft_ms": "time to first token, ms",
    "tpot_ms": "time per token, ms",
    "e2el_ms": "whole answer, ms",
}


def draw(source: Path) -> Path:
    """A column for each cell, a row for each measure."""
    result = json.loads(source.read_text())
    unit = "users" if "users" in result["rows"][0] else "sequences"
    measures = [measure for measure in MEASURES if measure in result["rows"][0]]
    cells = list(dict.fromkeys((row["model"], row[unit]) for row in result["rows"]))
    size = (2.6 * len(cells), 0.5 + 2.7 * len(measures))
    figure, panels = pyplot.subplots(len(measures), len(cells), figsize=size, squeeze=False)
    for measure, line in zip(measures, panels, strict=True):
        for panel, (model, number) in zip(line, cells, strict=True):
            rows = [row for row in result["rows"] if (row["model"], row[unit]) == (model, number)]
            _bars(panel, [row["engine"] for row in rows], [row[measure] for row in rows], FORMATS[measure])
            panel.set_title(f"{model}, {number} {'at once' if unit == 'sequences' else unit}")
        line[0].set_ylabel(MEASURES[measure])
    figure.suptitle(f"{result['what']}\n{result['machine']['cpu']}, {result['machine']['threads']} threads")
    figure.tight_layout()
    target = source.with_suffix(".svg")
    figure.savefig(target, metadata={"Date": None})
    return target


def _bars(panel: Any, names: list[str], values: list[dict[str, float]], shown: str) -> None:
    heights = [value["median"] for value in values]
    spread = [[v["median"] - v["min"] for v in values], [v["max"] - v["median"] for v in values]]
    bars = panel.bar(names, heights, yerr=spread, capsize=3, color=[COLOURS[name] for name in names])
    panel.bar_label(bars, fmt=shown, padding=2)
    panel.tick_params(axis="x", rotation=35)
    panel.spines[["top", "right"]].set_visible(False)
    panel.margins(y=0.15)


if __name__ == "__main__":
    print(f"wrote {draw(Path(sys.argv[1]))}")
