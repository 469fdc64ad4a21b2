"""/metrics: the collectors of quire_api.metrics.ENGINE, and what feeds them."""

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from quire_api.metrics import ENGINE
from quire_engine.core.scheduler import Load
from quire_engine.core.step import FinishReason
from quire_engine.process.client import Ask
from quire_engine.process.link import Report
from quire_engine.server.recent import Recent
from quire_engine.server.tally import Tally

__all__ = ["EngineMetrics", "SequenceClock"]

_KINDS = {"counter": Counter, "gauge": Gauge}
_PLAIN = ("model_name", "engine")
# And for ever, where the device's limits are not known: no line, rather than 0.
_UNKNOWN_AT_FIRST = {"quire_roofline_ratio"}


class EngineMetrics:
    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = (model_name, "0")
        self._collectors: dict[str, Any] = {}  # with their labels, where these are the same for all
        for metric in ENGINE:
            if metric.kind == "histogram":  # their labels are the same for all
                labels = dict(zip(metric.labels, self._labels, strict=True))
                tally = self._collectors[metric.name] = Tally(metric.name, metric.help, metric.buckets, labels)
                self._registry.register(tally)
                continue
            collector: Any = _KINDS[metric.kind](metric.name, metric.help, metric.labels, registry=self._registry)
            plain = metric.labels == _PLAIN and metric.name not in _UNKNOWN_AT_FIRST
            self._collectors[metric.name] = collector.labels(*self._labels) if plain else collector
        for reason in FinishReason:
            self._collectors["vllm:request_success_total"].labels(*self._labels, reason.value)
        self.first_tokens = Recent()  # seconds to them
        self.load = Load(  # the last report's
            running=0, waiting=0, kv_usage=0, preemptions=0, finished=0, prefix_queries=0, prefix_hits=0
        )

    def __getitem__(self, name: str) -> Any:
        return self._collectors[name]

    def labelled(self, name: str, *labels: str) -> Any:
        return self._collectors[name].labels(*self._labels, *labels)

    def on_report(self, report: Report) -> None:
        load = report.load
        self["vllm:num_requests_running"].set(load.running)
        self["vllm:num_requests_waiting"].set(load.waiting)
        self["vllm:kv_cache_usage_perc"].set(load.kv_usage)
        self["vllm:gpu_cache_usage_perc"].set(load.kv_usage)
        before, self.load = self.load, load
        if load.preemptions != before.preemptions:
            self["vllm:num_preemptions_total"].inc(load.preemptions - before.preemptions)
        if load.prefix_queries != before.prefix_queries:
            self["vllm:prefix_cache_queries_total"].inc(load.prefix_queries - before.prefix_queries)
            self["vllm:prefix_cache_hits_total"].inc(load.prefix_hits - before.prefix_hits)
        made = sum(token >= 0 for token in report.tokens)
        if made:
            self["vllm:generation_tokens_total"].inc(made)
        if report.num_tokens:
            self["vllm:iteration_tokens_total"].observe(report.num_tokens)
            self["quire_step_seconds"].observe(report.seconds)
            if report.least_s and report.seconds:
                self.labelled("quire_roofline_ratio").set(report.least_s / report.seconds)

    def watch(self, name: str, function: Callable[[], float]) -> None:
        """A gauge that is asked for when it is read."""
        self[name].set_function(function)

    def clock(self, ask: Ask) -> "SequenceClock":
        """Start to measure an accepted sequence."""
        return SequenceClock(self, len(ask.prompt), ask.params.max_tokens, is_first=ask.follows is None)

    def render(self) -> bytes:
        return generate_latest(self._registry)


class SequenceClock:
    """The times of one sequence, by time.monotonic, which the engine process shares. When a token arrived counts, not when
    the client took it."""

    __slots__ = (
        "_arrival",
        "_began",
        "_between",
        "_cached",
        "_finished",
        "_first",
        "_is_first",
        "_last",
        "_max_tokens",
        "_metrics",
        "_prompt",
        "tokens",
    )

    def __init__(self, metrics: EngineMetrics, prompt: int, max_tokens: int, *, is_first: bool) -> None:
        """`is_first` of those that share a prompt."""
        self._metrics = metrics
        self._between = metrics["vllm:inter_token_latency_seconds"]
        self._prompt, self._max_tokens, self._is_first = prompt, max_tokens, is_first
        self._arrival = self._began = self._first = self._last = time.monotonic()
        self.tokens = self._cached = 0
        self._finished = False

    def begin(self, started: float, cached: int) -> None:
        """Its first step began then, and found so much of the prompt in the cache."""
        self._began = max(started, self._arrival)
        self._cached = cached
        self._metrics["vllm:request_queue_time_seconds"].observe(self._began - self._arrival)
        if self._is_first:
            self._metrics["vllm:prompt_tokens_total"].inc(self._prompt)
            self._metrics["vllm:prompt_tokens_cached_total"].inc(cached)

    def token(self, now: float) -> None:
        if self.tokens:
            self._between.observe(now - self._last)
        else:
            self._first = now
            self._metrics["vllm:time_to_first_token_seconds"].observe(now - self._arrival)
            self._metrics.first_tokens.add(now, now - self._arrival)
        self.tokens += 1
        self._last = now

    def finish(self, reason: FinishReason) -> None:
        """Counts once, the first time."""
        if self._finished:
            return
        self._finished = True
        metrics, now = self._metrics, time.monotonic()
        now = self._last if self.tokens and reason is not FinishReason.ABORT else now
        metrics.labelled("vllm:request_success_total", reason.value).inc()
        metrics["vllm:e2e_request_latency_seconds"].observe(now - self._arrival)
        metrics["vllm:request_prompt_tokens"].observe(self._prompt)
        metrics["vllm:request_generation_tokens"].observe(self.tokens)
        metrics["vllm:request_prefill_kv_computed_tokens"].observe(self._prompt - self._cached)
        metrics["vllm:request_params_max_tokens"].observe(self._max_tokens)
        if self.tokens:
            metrics["vllm:request_inference_time_seconds"].observe(self._last - self._began)
            metrics["vllm:request_prefill_time_seconds"].observe(self._first - self._began)
            metrics["vllm:request_decode_time_seconds"].observe(self._last - self._first)
        if self.tokens > 1:
            mean = (self._last - self._first) / (self.tokens - 1)
            metrics["vllm:request_time_per_output_token_seconds"].observe(mean)
