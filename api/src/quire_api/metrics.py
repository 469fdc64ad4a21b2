"""The names, labels and meanings of all metrics.

Names that vLLM exports keep its name and meaning, so that dashboards and alerts work unchanged;
`quire_` marks what only we have. The engine and the router build their collectors from this table,
and docs/reference/metrics.md is generated from it.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ENGINE", "OPERATOR", "ROUTER", "Metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_MODEL = ("model_name",)

ENGINE: tuple[Metric, ...] = (
    Metric(name="vllm:num_requests_running", kind="gauge", labels=_MODEL, help="Requests in the running batch."),
    Metric(name="vllm:num_requests_waiting", kind="gauge", labels=_MODEL, help="Requests that wait to be admitted."),
    Metric(
        name="vllm:kv_cache_usage_perc", kind="gauge", labels=_MODEL, help="Share of KV cache blocks in use; 1 is full."
    ),
    Metric(
        name="vllm:num_preemptions_total",
        kind="counter",
        labels=_MODEL,
        help="Requests put back into the queue for want of KV cache.",
    ),
    Metric(
        name="vllm:prefix_cache_queries_total",
        kind="counter",
        labels=_MODEL,
        help="Prompt tokens of admitted requests: those that were looked for in the prefix cache.",
    ),
    Metric(
        name="vllm:prefix_cache_hits_total",
        kind="counter",
        labels=_MODEL,
        help="Prompt tokens that were found there, and not computed again.",
    ),
    Metric(
        name="vllm:prompt_tokens_total",
        kind="counter",
        labels=_MODEL,
        help="Prompt tokens of requests that were started.",
    ),
    Metric(name="vllm:generation_tokens_total", kind="counter", labels=_MODEL, help="Tokens generated."),
    Metric(
        name="vllm:request_success_total",
        kind="counter",
        labels=(*_MODEL, "finished_reason"),
        help="Finished requests, by reason: stop, length, abort, error.",
    ),
    Metric(
        name="vllm:time_to_first_token_seconds",
        kind="histogram",
        labels=_MODEL,
        help="Arrival to first token.",
        buckets=_SECONDS,
    ),
    Metric(
        name="vllm:inter_token_latency_seconds",
        kind="histogram",
        labels=_MODEL,
        help="Between two tokens of a request.",
        buckets=_SECONDS,
    ),
    Metric(
        name="vllm:e2e_request_latency_seconds",
        kind="histogram",
        labels=_MODEL,
        help="Arrival to last token.",
        buckets=_SECONDS,
    ),
)

ROUTER: tuple[Metric, ...] = (
    Metric(
        name="quire_router_requests_total",
        kind="counter",
        labels=("model", "code"),
        help="Requests answered, by model and status code.",
    ),
    Metric(name="quire_router_requests_open", kind="gauge", labels=("model",), help="Requests now being answered."),
)

OPERATOR: tuple[Metric, ...] = (
    Metric(
        name="quire_operator_reconciles_total",
        kind="counter",
        labels=("result",),
        help="Reconciles, by result: done, error.",
    ),
    Metric(
        name="quire_operator_reconcile_seconds",
        kind="histogram",
        labels=(),
        help="Duration of one reconcile.",
        buckets=_SECONDS,
    ),
)
