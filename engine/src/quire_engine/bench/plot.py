"""Latency against load as an SVG: one panel a metric, one point a run, median and percentiles as lines. No library."""

import math
from collections.abc import Sequence
from html import escape

from quire_engine.bench.report import Run
from quire_engine.bench.statistics import METRICS

__all__ = ["plot", "ticks"]

WIDTH, HEIGHT = 320, 240  # of a panel's plane, in pixels
LEFT, TOP, GAP, BOTTOM = 64, 64, 90, 64
COLOURS = ("#1b6e53", "#c77d1e", "#6a5acd", "#9a9a9a", "#b03a48")


def plot(title: str, runs: Sequence[Run], metrics: Sequence[str]) -> str:
    """Points stand at the requests answered a second, which past its capacity is not what a server was asked for."""
    runs = sorted((run for run in runs if run.summary.completed), key=lambda run: run.summary.requests_per_s)
    panels = [_panel(number, name, runs) for number, name in enumerate(metrics)]
    width = LEFT + len(metrics) * (WIDTH + GAP)
    height = TOP + HEIGHT + BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="24" font-size="14">{escape(title)}</text>',
            *panels,
            "</svg>\n",
        ]
    )


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to at least `most`, four to eight of them."""
    if most <= 0:
        return [0.0, 1.0]
    power = 10 ** math.floor(math.log10(most / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if most / (power * factor) <= 6)
    return [step * number for number in range(math.ceil(most / step - 1e-9) + 1)]


def _panel(number: int, metric: str, runs: Sequence[Run]) -> str:
    points = [
        (run.summary.requests_per_s, run.summary.spreads_ms[metric]) for run in runs if metric in run.summary.spreads_ms
    ]
    lines = {"median": [(load, spread.median) for load, spread in points]}
    for percent in points[0][1].percentiles if points else ():
        lines[f"p{percent:g}"] = [(load, spread.percentiles[percent]) for load, spread in points]
    across = ticks(max((load for load, _ in points), default=1.0))
    up = ticks(max((value for line in lines.values() for _, value in line), default=1.0))
    left = LEFT + number * (WIDTH + GAP)

    def x(load: float) -> float:
        return left + WIDTH * load / across[-1]

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - value / up[-1])

    parts = [f'<text x="{left}" y="{TOP - 12}">{escape(METRICS[metric])}, ms</text>']
    for tick in up:
        parts.append(f'<path d="M{left} {y(tick):.1f}h{WIDTH}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in across:
        parts.append(f'<text x="{x(tick):.1f}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(
        f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 40}" text-anchor="middle">requests answered a second</text>'
    )
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(f"{x(load):.1f},{y(value):.1f}" for load, value in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(load):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for load, value in line]
        parts.append(f'<text x="{left + WIDTH + 6}" y="{TOP + 14 + 16 * place}" fill="{colour}">{name}</text>')
    return "\n".join(parts)
