"""/metrics: the collectors of quire_api.metrics.ENGINE, and what feeds them."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from quire_api.metrics import ENGINE
from quire_engine.core.scheduler import Load
from quire_engine.core.step import FinishReason

__all__ = ["EngineMetrics", "RequestClock"]

_KINDS = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}


class EngineMetrics:
    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model = model_name
        self._collectors = {}
        for metric in ENGINE:
            options = {"buckets": metric.buckets} if metric.buckets else {}
            collector = _KINDS[metric.kind](metric.name, metric.help, metric.labels, registry=self._registry, **options)
            self._collectors[metric.name] = collector
            if metric.labels == ("model_name",):
                collector.labels(model_name)  # so that it is there, with 0, from the start
        self._counted = Load(running=0, waiting=0, kv_usage=0, preemptions=0, prefix_queries=0, prefix_hits=0)

    def on_load(self, load: Load) -> None:
        self._of("vllm:num_requests_running").set(load.running)
        self._of("vllm:num_requests_waiting").set(load.waiting)
        self._of("vllm:kv_cache_usage_perc").set(load.kv_usage)
        before, self._counted = self._counted, load
        self._of("vllm:num_preemptions_total").inc(load.preemptions - before.preemptions)
        self._of("vllm:prefix_cache_queries_total").inc(load.prefix_queries - before.prefix_queries)
        self._of("vllm:prefix_cache_hits_total").inc(load.prefix_hits - before.prefix_hits)

    def clock(self, prompt_tokens: int) -> "RequestClock":
        """Start to measure an accepted request."""
        self._of("vllm:prompt_tokens_total").inc(prompt_tokens)
        return RequestClock(self)

    def render(self) -> bytes:
        return generate_latest(self._registry)

    def _of(self, name: str, *labels: str):  # type: ignore[no-untyped-def]  # the three kinds share no type
        return self._collectors[name].labels(self._model, *labels)


class RequestClock:
    """The times of one request."""

    def __init__(self, metrics: EngineMetrics) -> None:
        self._metrics = metrics
        self._arrival = self._last = time.perf_counter()
        self._tokens = 0

    def token(self) -> None:
        now = time.perf_counter()
        name = "vllm:inter_token_latency_seconds" if self._tokens else "vllm:time_to_first_token_seconds"
        self._metrics._of(name).observe(now - self._last)
        self._metrics._of("vllm:generation_tokens_total").inc()
        self._tokens += 1
        self._last = now

    def finish(self, reason: FinishReason) -> None:
        self._metrics._of("vllm:request_success_total", reason.value).inc()
        self._metrics._of("vllm:e2e_request_latency_seconds").observe(time.perf_counter() - self._arrival)
