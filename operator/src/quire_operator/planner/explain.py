"""The status of an autoscaled resource in sentences, for `quire explain`. Pure; a line is for a terminal, without colour."""

from quire_api.reasons import SCALE_REASONS, ConditionType
from quire_api.status import AutoscalingStatus, DeploymentStatus, ScaleEvent

__all__ = ["explain"]


def explain(status: DeploymentStatus) -> list[str]:
    """Why there are as many engines as there are; newest first."""
    condition, scaling = status.condition(ConditionType.AUTOSCALING_ACTIVE), status.autoscaling
    lines = [f"{status.ready_replicas} of {status.replicas} engines serve {status.model_name}"]
    if condition is not None:
        lines.append(f"autoscaling: {condition.reason}: {condition.message}")
    if scaling is None:
        return lines if condition is not None else [*lines, "the number of engines is set by spec.replicas"]
    return [*lines, *_learned(scaling), *(line for event in scaling.history for line in _event(event))]


def _learned(scaling: AutoscalingStatus) -> list[str]:
    capacity = (
        f"one engine carries about {scaling.capacity_tokens:,} tokens in flight" if scaling.capacity_tokens else ""
    )
    cold = f"one takes {scaling.cold_start} to be ready" if scaling.cold_start else ""
    words = "; ".join(part for part in (capacity, cold) if part)
    return [f"learned: {words}" if words else "learned: nothing yet, for no engine was full"]


def _event(event: ScaleEvent) -> list[str]:
    seen = event.inputs
    return [
        f"{event.at}  {event.before} -> {event.desired}  {event.reason}",
        f"    {SCALE_REASONS[event.reason]}",
        f"    seen: {seen.ready} of {seen.replicas} engines ready, {seen.running} requests running, {seen.waiting} waiting, "
        f"KV cache {seen.kv_cache_utilization or '0.00'}, "
        + (f"first tokens within {seen.ttft_p95}, " if seen.ttft_p95 else "")
        + f"needed {seen.needed_tokens:,} tokens in flight, "
        + (f"{seen.capacity_tokens:,} an engine" if seen.capacity_tokens else "an engine's share not known yet"),
    ]
