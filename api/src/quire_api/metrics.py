"""The names, labels and meanings of all metrics.

Names that vLLM exports keep its name and meaning, so that dashboards and alerts work unchanged;
`quire_` marks what only we have. The engine and the router build their collectors from this table,
and docs/reference/metrics.md is generated from it.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ENGINE", "OPERATOR", "ROUTER", "VLLM", "Metric"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()


_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
_MODEL = ("model_name", "engine")  # engine: always "0", for queries written for vLLM


def _gauge(name: str, text: str, *more: str) -> Metric:
    return Metric(name=name, kind="gauge", labels=(*_MODEL, *more), help=text)


def _counter(name: str, text: str, *more: str) -> Metric:
    return Metric(name=name, kind="counter", labels=(*_MODEL, *more), help=text)


def _seconds(name: str, text: str) -> Metric:
    return Metric(name=name, kind="histogram", labels=_MODEL, help=text, buckets=_SECONDS)


def _tokens(name: str, text: str) -> Metric:
    return Metric(name=name, kind="histogram", labels=_MODEL, help=text, buckets=_TOKENS)


ENGINE: tuple[Metric, ...] = (
    _gauge("vllm:num_requests_running", "Sequences in the running batch."),
    _gauge(
        "vllm:num_requests_waiting",
        "Sequences that wait to be admitted, for their grammar to be compiled, or to go on after a preemption.",
    ),
    _gauge("vllm:kv_cache_usage_perc", "Share of KV cache blocks in use; 1 is full."),
    _gauge("vllm:gpu_cache_usage_perc", "The same, by the name it had before."),
    _counter("vllm:num_preemptions_total", "Sequences put back into the queue for want of KV cache."),
    _counter(
        "vllm:prefix_cache_queries_total",
        "Prompt tokens of admitted requests: those that were looked for in the prefix cache.",
    ),
    _counter("vllm:prefix_cache_hits_total", "Prompt tokens that were found there, and not computed again."),
    _counter("vllm:prompt_tokens_total", "Prompt tokens of requests that were started."),
    _counter("vllm:prompt_tokens_cached_total", "Those of them that came from the prefix cache."),
    _counter("vllm:generation_tokens_total", "Tokens generated."),
    _counter(
        "vllm:request_success_total", "Finished sequences, by reason: stop, length, abort, error.", "finished_reason"
    ),
    _counter("vllm:admission_rejections_total", "Requests answered 429 because the queue was full."),
    _seconds("vllm:time_to_first_token_seconds", "Arrival to first token."),
    _seconds("vllm:inter_token_latency_seconds", "Between two tokens of a sequence."),
    _seconds("vllm:request_time_per_output_token_seconds", "Mean time between the tokens of a finished sequence."),
    _seconds("vllm:e2e_request_latency_seconds", "Arrival to last token."),
    _seconds("vllm:request_queue_time_seconds", "Arrival to the beginning of the first step."),
    _seconds("vllm:request_inference_time_seconds", "Beginning of the first step to last token."),
    _seconds("vllm:request_prefill_time_seconds", "Beginning of the first step to first token."),
    _seconds("vllm:request_decode_time_seconds", "First token to last token."),
    _tokens("vllm:request_prompt_tokens", "Prompt tokens of a finished sequence."),
    _tokens("vllm:request_generation_tokens", "Output tokens of a finished sequence."),
    _tokens(
        "vllm:request_prefill_kv_computed_tokens", "Prompt tokens of a finished sequence that were computed, not found."
    ),
    _tokens("vllm:request_max_num_generation_tokens", "Output tokens of the longest answer of a finished request."),
    _tokens("vllm:request_params_max_tokens", "Most tokens it was allowed."),
    _tokens("vllm:request_params_n", "Answers that its request asked for."),
    _tokens("vllm:iteration_tokens_total", "Tokens of a step."),
    _gauge(
        "vllm:cache_config_info",
        "1; the labels say what the KV cache is made of.",
        "block_size",
        "num_gpu_blocks",
        "enable_prefix_caching",
    ),
    Metric(
        name="http_requests_total",
        kind="counter",
        labels=("handler", "method", "status"),
        help="Answers by path, method and kind of status (2xx ...); `none` is a path that is not there, 499 a client that left.",
    ),
    _seconds("quire_step_seconds", "Duration of a step."),
    _gauge(
        "quire_roofline_ratio",
        "What the last step would have taken at the limits of the device's data sheet, by what it took; "
        "only on devices whose limits are known.",
    ),
    _gauge("quire_engine_heartbeat_age_seconds", "Time since the engine process was last heard."),
    _gauge("quire_ready_seconds", "From the start of the process until it was ready."),
    _gauge("quire_requests_inside", "Requests accepted and not yet answered to the last byte."),
)

# What vLLM 0.32 exports, without `_total` -> why we do not; "" if we do.
VLLM: dict[str, str] = {
    "num_requests_running": "",
    "num_requests_waiting": "",
    "num_requests_waiting_by_reason": "not told apart: for room, after a preemption, or for a grammar",
    "kv_cache_usage_perc": "",
    "cache_config_info": "",
    "prefix_cache_queries": "",
    "prefix_cache_hits": "",
    "num_preemptions": "",
    "prompt_tokens": "",
    "prompt_tokens_cached": "",
    "prompt_tokens_by_source": "prompt_tokens and prompt_tokens_cached say as much",
    "prompt_tokens_cached_by_source": "there is one cache",
    "generation_tokens": "",
    "request_success": "",
    "admission_rejections": "the same, but that what was refused with 429 waited for its first step; there is one reason, and no label",
    "corrupted_requests": "an answer that is not a number ends with an error: request_success of reason `error`",
    "iteration_tokens": "",
    "time_to_first_token_seconds": "",
    "inter_token_latency_seconds": "",
    "request_time_per_output_token_seconds": "",
    "e2e_request_latency_seconds": "",
    "request_queue_time_seconds": "",
    "request_inference_time_seconds": "",
    "request_prefill_time_seconds": "",
    "request_decode_time_seconds": "",
    "request_prompt_tokens": "",
    "request_generation_tokens": "",
    "request_max_num_generation_tokens": "",
    "request_params_n": "",
    "request_params_max_tokens": "",
    "request_prefill_kv_computed_tokens": "",
    "request_num_preemptions": "num_preemptions counts them all",
    "tool_call_parser_invocations": "a parser reads every answer that may have calls",
    "lora_requests_info": "there are no adapters yet",
    "spec_decode_*": "there is no speculation yet",
    "mm_cache_*": "there are no images yet",
    "external_prefix_cache_*": "there is no cache outside the engine",
    "kv_block_*": "blocks are not sampled",
    "estimated_*_per_gpu": "not estimated",
    "http_requests (without vllm:)": "the same, as http_requests_total",
    "http_request_duration_*, http_request_size_* (without vllm:)": "e2e_request_latency_seconds says how long requests take",
    "engine_sleep_state": "engines do not sleep: they are scaled",
    "kv_offload_*, nixl_*, mooncake_*, hf3fs_*, hisparse_*, simple_kv_offload_*": "of connectors that we do not have",
    "sleep_mode_*, rl_weight_update_*, diffusion_*, websocket_*, watermark_*": "of features that we do not have",
}


def _router(name: str, kind: Literal["counter", "gauge", "histogram"], text: str, *labels: str) -> Metric:
    return Metric(
        name=f"quire_router_{name}",
        kind=kind,
        labels=labels,
        help=text,
        buckets=_SECONDS if kind == "histogram" else (),
    )


ROUTER: tuple[Metric, ...] = (
    _router(
        "requests_total",
        "counter",
        "Requests answered, by model and status code; 499 is a client that left, and no model one that was not found.",
        "model",
        "code",
    ),
    _router("requests_open", "gauge", "Requests now being answered, held ones among them.", "model"),
    _router("requests_held", "gauge", "Requests that wait for an engine to be ready.", "model"),
    _router("wakes_total", "counter", "Times that a held request asked for the model to be woken.", "model"),
    _router(
        "retries_total",
        "counter",
        "Requests given to another engine, by cause: refused (no connection), reset (no byte of an answer), unready (503).",
        "model",
        "cause",
    ),
    _router("answers_broken_total", "counter", "Answers that ended with an error event, or were cut.", "model"),
    _router(
        "first_byte_seconds", "histogram", "From the whole request to the first byte of its answer's body.", "model"
    ),
    _router(
        "backends", "gauge", "Engines, by state: loading, ready, draining, open (its circuit), stale.", "model", "state"
    ),
    _router("key_requests_total", "counter", "Requests of an API key, by its name and status code.", "key", "code"),
    _router(
        "key_tokens_total",
        "counter",
        "Tokens of an API key, by kind: prompt, completion; estimated where an answer does not say.",
        "key",
        "kind",
    ),
    _router("reload_failures_total", "counter", "Times that a changed file could not be taken.", "file"),
    _router(
        "registry_silent_seconds",
        "gauge",
        "For how long the API server has not answered; what it said last goes on serving. 0 while it answers.",
    ),
)


def _operator(name: str, kind: Literal["counter", "gauge", "histogram"], text: str, *labels: str) -> Metric:
    return Metric(
        name=f"quire_operator_{name}",
        kind=kind,
        labels=labels,
        help=text,
        buckets=_SECONDS if kind == "histogram" else (),
    )


OPERATOR: tuple[Metric, ...] = (
    _operator("reconciles_total", "counter", "Reconciles, by result: done, error.", "result"),
    _operator("reconcile_seconds", "histogram", "Duration of one reconcile."),
    _operator("queue_wait_seconds", "histogram", "From when a resource's turn was due to when it began."),
    _operator("queue_depth", "gauge", "Resources whose turn is due and has not begun."),
    _operator("queue_oldest_seconds", "gauge", "For how long the first of them has been due."),
    _operator(
        "api_writes_total",
        "counter",
        "Writes that were asked of the API server, by verb (create, apply, patch, delete) and resource.",
        "verb",
        "resource",
    ),
    _operator(
        "drift_corrected_total",
        "counter",
        "Times that an object was put right which somebody else had changed or deleted, by its kind.",
        "kind",
    ),
    _operator("leader", "gauge", "1 while this operator holds the lease, and works; 0 while it stands by."),
    _operator(
        "resources",
        "gauge",
        "LLMDeployments by what their conditions Ready and Available say: True, False, Unknown. Of a standby: none.",
        "condition",
        "status",
    ),
    _operator(
        "replicas",
        "gauge",
        "Engines of an LLMDeployment, by state: wanted now, ready.",
        "namespace",
        "name",
        "state",
    ),
)
