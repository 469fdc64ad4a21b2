"""Text for people: aligned columns, ages, colours where there is a terminal that wants them. Pure but for `coloured`."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["age", "coloured", "fields", "paint", "table"]

_CODES = {"green": "32", "yellow": "33", "red": "31", "dim": "2", "bold": "1"}
_TONES = {  # of states and reasons; what is not here has none
    "Serving": "green", "ready": "green", "True": "green", "ScaledToZero": "dim", "Suspended": "dim", "Unknown": "dim",
    "draining": "dim", "loading": "yellow", "Starting": "yellow", "Scaling": "yellow", "RollingOut": "yellow",
    "Restarting": "yellow", "NotObserved": "dim", "failed": "red",
}  # fmt: skip


def coloured(stream: TextIO | None = None) -> bool:
    """A terminal, and nobody said NO_COLOR (no-color.org)."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(words: str, colour: str, *, on: bool) -> str:
    return f"\x1b[{_CODES[colour]}m{words}\x1b[0m" if on and words else words


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, colours: bool, widths: Sequence[int] = ()) -> str:
    """`widths`: at least these, so that rows which come later line up."""
    lines = [header, *rows] if header else list(rows)
    columns = len(lines[0]) if lines else 0
    wide = [max([*(len(line[c]) for line in lines), *widths[c : c + 1]]) for c in range(columns)]
    text = []
    for number, line in enumerate(lines):
        cells = [cell if c == columns - 1 else cell.ljust(wide[c]) for c, cell in enumerate(line)]
        tone = [paint(cell, "bold", on=colours) for cell in cells] if header and number == 0 else None
        text.append("   ".join(tone or [_toned(cell, on=colours) for cell in cells]).rstrip())
    return "\n".join(text)


def fields(pairs: Sequence[tuple[str, str]], *, colours: bool, indent: str = "") -> str:
    """Name and value, a line each."""
    wide = max((len(name) for name, _ in pairs), default=0) + 1
    return "\n".join(
        f"{indent}{paint((name + ':').ljust(wide), 'dim', on=colours)} {_toned(value, on=colours)}"
        for name, value in pairs
    )


def age(seconds: float) -> str:
    """As kubectl writes it: 12s, 5m, 3h, 2d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def _toned(cell: str, *, on: bool) -> str:
    tone = _TONES.get(cell.strip())
    return paint(cell, tone, on=on) if tone else cell
