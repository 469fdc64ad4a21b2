"""The router's own metrics, in the text format of Prometheus.

Written out by hand: a counter and a gauge are not worth a dependency of the process that all bytes pass.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quire_api.metrics import ROUTER

__all__ = ["Outcome", "RouterMetrics"]


@dataclass(slots=True)
class Outcome:
    code: int = 499  # the client left before there was an answer


class RouterMetrics:
    def __init__(self) -> None:
        self._answered: Counter[tuple[str, str]] = Counter()
        self._open: Counter[tuple[str]] = Counter()

    @contextlib.contextmanager
    def open(self, model: str) -> Iterator[Outcome]:
        """Count a request while it is being answered, then by its outcome."""
        outcome = Outcome()
        self._open[(model,)] += 1
        try:
            yield outcome
        finally:
            self._open[(model,)] -= 1
            self._answered[(model, str(outcome.code))] += 1

    def render(self) -> bytes:
        lines = []
        tables: tuple[Mapping[Any, int], ...] = (self._answered, self._open)
        for metric, values in zip(ROUTER, tables, strict=True):
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            for labels, value in sorted(values.items()):
                pairs = ",".join(f"{name}={_quoted(label)}" for name, label in zip(metric.labels, labels, strict=True))
                lines.append(f"{metric.name}{{{pairs}}} {value}")
        return ("\n".join(lines) + "\n").encode()


def _quoted(label: str) -> str:
    escaped = label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'
