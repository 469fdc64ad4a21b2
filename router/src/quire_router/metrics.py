"""/metrics: the collectors of quire_api.metrics.ROUTER, and what feeds them."""

from collections import Counter as Tally
from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from quire_api.metrics import ROUTER

__all__ = ["RouterMetrics"]

_KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class RouterMetrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._collectors: dict[str, Any] = {}
        self._children: dict[tuple[str, ...], Any] = {}  # looking one up costs more than counting
        for metric in ROUTER:
            options: dict[str, Any] = {"buckets": metric.buckets} if metric.buckets else {}
            self._collectors[metric.name] = _KINDS[metric.kind](
                metric.name, metric.help, metric.labels, registry=self._registry, **options
            )

    def of(self, name: str, *labels: str) -> Any:
        child = self._children.get((name, *labels))
        if child is None:
            child = self._children[(name, *labels)] = self._collectors[f"quire_router_{name}"].labels(*labels)
        return child

    def set_held(self, counts: Iterable[tuple[str, int]]) -> None:
        """Of every model there is; others are forgotten."""
        self._collectors["quire_router_requests_held"].clear()
        for model, count in counts:
            self._collectors["quire_router_requests_held"].labels(model).set(count)

    def set_backends(self, states: Iterable[tuple[str, str]]) -> None:
        """The model and the state of each engine."""
        self._collectors["quire_router_backends"].clear()
        for (model, state), count in Tally(states).items():
            self._collectors["quire_router_backends"].labels(model, state).set(count)

    def set_silence(self, seconds: float) -> None:
        self._collectors["quire_router_registry_silent_seconds"].set(seconds)

    def render(self) -> bytes:
        return generate_latest(self._registry)
