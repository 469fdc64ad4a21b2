"""The operator's own metrics."""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from quire_api.metrics import OPERATOR

__all__ = ["OperatorMetrics"]


class OperatorMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        reconciles, duration = OPERATOR
        self._reconciles = Counter(reconciles.name, reconciles.help, reconciles.labels, registry=self._registry)
        self._duration = Histogram(duration.name, duration.help, registry=self._registry, buckets=duration.buckets)

    @contextlib.contextmanager
    def reconcile(self) -> Iterator[None]:
        """Measure one turn."""
        started, result = time.perf_counter(), "error"
        try:
            yield
            result = "done"
        finally:
            self._reconciles.labels(result).inc()
            self._duration.observe(time.perf_counter() - started)

    def render(self) -> bytes:
        return generate_latest(self._registry)
