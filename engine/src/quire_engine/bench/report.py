"""Summaries -> what is printed, and the JSON, whose keys are those of `vllm bench serve`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quire_engine.bench.statistics import METRICS, Summary

__all__ = ["Run", "document", "table"]

REASONS = 5  # of failures that are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    request_rate: float  # asked for, a second; may be infinite
    max_concurrency: int | None
    summary: Summary
    client_cpu_s: float


def table(run: Run, metrics: Sequence[str]) -> str:
    summary = run.summary
    lines = [("requests", f"{summary.completed} ok, {summary.failed} failed")]
    lines += [("", f"{number} × {reason}") for reason, number in summary.reasons[:REASONS]]
    if len(summary.reasons) > REASONS:
        lines.append(("", f"and {len(summary.reasons) - REASONS} other reasons"))
    lines += [
        ("load", _load(run)),
        ("duration", f"{summary.duration_s:.2f} s"),
        ("requests/s", f"{summary.requests_per_s:.2f}"),
    ]
    if summary.good_per_s is not None:
        lines.append(("goodput", f"{summary.good_per_s:.2f} requests/s, {summary.good} requests"))
    if summary.completed:
        lines += [
            ("output tokens/s", f"{summary.output_tokens_per_s:.2f}"),
            ("total tokens/s", f"{summary.total_tokens_per_s:.2f}"),
            (
                "tokens a request",
                f"{summary.input_tokens / summary.completed:.1f} in, {summary.output_tokens / summary.completed:.1f} out",
            ),
        ]
    lines.append(("client", f"{run.client_cpu_s / max(summary.duration_s, 1e-9):.0%} of a core"))
    text = [f"{name:17} {value}" for name, value in lines]
    return "\n".join(text + _spreads(summary, metrics))


def document(run: Run) -> dict[str, Any]:
    summary = run.summary
    numbers: dict[str, Any] = {
        "request_rate": "inf" if run.request_rate == float("inf") else run.request_rate,
        "max_concurrency": run.max_concurrency,
        "duration": summary.duration_s,
        "completed": summary.completed,
        "failed": summary.failed,
        "errors": dict(summary.reasons),
        "total_input_tokens": summary.input_tokens,
        "total_output_tokens": summary.output_tokens,
        "request_throughput": summary.requests_per_s,
        "request_goodput": summary.good_per_s,
        "output_throughput": summary.output_tokens_per_s,
        "total_token_throughput": summary.total_tokens_per_s,
        "client_cpu_s": run.client_cpu_s,
    }
    for name, spread in summary.spreads_ms.items():
        numbers[f"mean_{name}_ms"] = spread.mean
        numbers[f"median_{name}_ms"] = spread.median
        numbers |= {f"p{percent:g}_{name}_ms": value for percent, value in spread.percentiles.items()}
    return numbers


def _load(run: Run) -> str:
    rate = "all at once" if run.request_rate == float("inf") else f"{run.request_rate:g} requests/s"
    return rate if run.max_concurrency is None else f"{rate}, at most {run.max_concurrency} in flight"


def _spreads(summary: Summary, metrics: Sequence[str]) -> list[str]:
    shown = [name for name in metrics if name in summary.spreads_ms]
    if not shown:
        return []
    percents = summary.spreads_ms[shown[0]].percentiles
    heads = ["mean", "median", *(f"p{percent:g}" for percent in percents)]
    rows = [["milliseconds", *heads, ""]]
    for name in shown:
        spread = summary.spreads_ms[name]
        values = [spread.mean, spread.median, *spread.percentiles.values()]
        rows.append([name.upper(), *(f"{value:.2f}" for value in values), f"  {METRICS[name]}"])
    widths = [max(len(row[i]) for row in rows) for i in range(1, len(heads) + 1)]
    return [
        "",
        *(
            f"{row[0]:17}"
            + "".join(f" {cell:>{width + 1}}" for cell, width in zip(row[1:-1], widths, strict=True))
            + row[-1]
            for row in rows
        ),
    ]
