"""The operator's own metrics. What is counted is told as it happens; what is so now is handed in when it is asked for."""

import contextlib
import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from quire_api.metrics import OPERATOR, Metric
from quire_operator.backends.census import Census

__all__ = ["OperatorMetrics"]


class OperatorMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        table = {metric.name.removeprefix("quire_operator_"): metric for metric in OPERATOR}
        self._reconciles = self._counter(table["reconciles_total"])
        self._duration = self._histogram(table["reconcile_seconds"])
        self._wait = self._histogram(table["queue_wait_seconds"])
        self._depth = self._gauge(table["queue_depth"])
        self._oldest = self._gauge(table["queue_oldest_seconds"])
        self._writes = self._counter(table["api_writes_total"])
        self._drift = self._counter(table["drift_corrected_total"])
        self._leader = self._gauge(table["leader"])
        self._resources = self._gauge(table["resources"])
        self._replicas = self._gauge(table["replicas"])

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

    def waited(self, seconds: float) -> None:
        """A resource, from when its turn was due to when it began."""
        self._wait.observe(seconds)

    def wrote(self, verb: str, resource: str) -> None:
        self._writes.labels(verb, resource).inc()

    def corrected(self, kind: str) -> None:
        """What somebody else had made of an object of ours."""
        self._drift.labels(kind).inc()

    def render(self, *, leads: bool, late: Sequence[float], census: Census) -> bytes:
        """`late` are the seconds since each turn was due that has not begun."""
        self._leader.set(leads)
        self._depth.set(len(late))
        self._oldest.set(max(late, default=0.0))
        self._resources.clear()
        for (condition, status), count in census.conditions.items():
            self._resources.labels(condition, status).set(count)
        self._replicas.clear()
        for key, (wanted, ready) in census.replicas.items():
            self._replicas.labels(key.namespace, key.name, "wanted").set(wanted)
            self._replicas.labels(key.namespace, key.name, "ready").set(ready)
        return generate_latest(self._registry)

    def _counter(self, metric: Metric) -> Counter:
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def _gauge(self, metric: Metric) -> Gauge:
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def _histogram(self, metric: Metric) -> Histogram:
        return Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)
