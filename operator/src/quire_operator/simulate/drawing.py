"""A load and what policies made of it, as an SVG: arrivals above, engines below, a line a policy. Pure; no library."""

from collections.abc import Mapping, Sequence
from html import escape

from quire_operator.simulate.fleet import Step
from quire_operator.simulate.loads import Load

__all__ = ["draw"]

WIDTH, HEIGHT, LEFT, TOP, GAP = 720, 130, 56, 44, 48
COLOURS = ("#1b6e53", "#c77d1e", "#6a5acd", "#b03a48")
PART_S = 30.0  # of the line of arrivals


def draw(title: str, load: Load, runs: Mapping[str, Sequence[Step]]) -> str:
    """`runs` by name; the first is drawn on top."""
    count = int(load.seconds // PART_S) + 1
    arrivals = [0.0] * count
    for request in load.arrivals:
        arrivals[int(request.at // PART_S)] += 1 / PART_S
    engines = {name: [(step.at, float(step.replicas)) for step in steps] for name, steps in runs.items()}
    most = max((n for line in engines.values() for _, n in line), default=1.0)
    lines = [
        _line(line, load.seconds, most, TOP + HEIGHT + GAP, COLOURS[number % len(COLOURS)], steps=True)
        for number, line in reversed(list(enumerate(engines.values())))
    ]
    legend = [
        f'<text x="{LEFT + 150 * number}" y="{TOP + 2 * HEIGHT + GAP + 34}" fill="{COLOURS[number % len(COLOURS)]}">{escape(name)}</text>'
        for number, name in enumerate(engines)
    ]
    peak = max(arrivals, default=1.0) or 1.0
    parts = [(number * PART_S, rate) for number, rate in enumerate(arrivals)]
    height = TOP + 2 * HEIGHT + GAP + 48
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 16} {height}" font-family="sans-serif" font-size="12">',
            f'<rect width="{LEFT + WIDTH + 16}" height="{height}" fill="white"/>',
            f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
            *_frame(TOP, f"requests/s, {peak:.1f} at most", load.seconds),
            _line(parts, load.seconds, peak, TOP, "#555", steps=False),
            *_frame(TOP + HEIGHT + GAP, f"engines, {most:.0f} at most", load.seconds),
            *lines,
            *legend,
            "</svg>\n",
        ]
    )


def _frame(top: int, label: str, seconds: float) -> list[str]:
    return [
        f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>',
        f'<text x="{LEFT}" y="{top - 6}">{escape(label)}</text>',
        f'<text x="{LEFT + WIDTH}" y="{top + HEIGHT + 14}" text-anchor="end">{seconds / 60:.0f} min</text>',
    ]


def _line(
    points: Sequence[tuple[float, float]], seconds: float, most: float, top: int, colour: str, *, steps: bool
) -> str:
    path: list[str] = []
    before = None
    for at, value in points:
        x, y = LEFT + WIDTH * at / seconds, top + HEIGHT * (1 - value / most)
        if steps and before is not None:
            path.append(f"{x:.1f},{before:.1f}")
        path.append(f"{x:.1f},{y:.1f}")
        before = y
    return f'<polyline points="{" ".join(path)}" fill="none" stroke="{colour}" stroke-width="1.6"/>'
