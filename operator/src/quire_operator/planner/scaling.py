"""Between the resource and the autoscaler: its spec as a policy, and a decision as replicas, status and condition.

Rule: one writer. In mode Builtin the operator decides and never touches `spec.replicas`; in the other modes it copies them,
whoever wrote them: a person, a HorizontalPodAutoscaler that we keep (HPA), or an autoscaler of others (External).
"""

from quire_api.base import delay_s, seconds
from quire_api.deployment import LLMDeployment
from quire_api.reasons import REASONS, ConditionType, Reason, ScaleReason
from quire_api.status import AutoscalingStatus, Condition, DeploymentStatus, ScaleEvent, ScaleInputs
from quire_operator.planner.autoscale import Inputs, Policy, ScaleDecision
from quire_operator.planner.conditions import MESSAGE_MAX
from quire_operator.planner.demand import Memory, carries
from quire_operator.planner.observed import Scaler

__all__ = ["condition", "policy_of", "recall", "replicas", "tell"]

HISTORY = 5
NEWS = 0.2  # what was learned is told again when it has changed by so much: status does not tick


def policy_of(deployment: LLMDeployment) -> Policy:
    """Of a resource in mode Builtin."""
    spec = deployment.spec.autoscaling
    return Policy(
        least=spec.min,
        most=spec.max or 1,  # a rule of the resource: Builtin has it
        kv_usage=spec.targets.kv_cache_utilization,
        waiting_per_replica=spec.targets.waiting_per_replica,
        ttft_p95_s=delay_s(spec.targets.ttft_p95) if spec.targets.ttft_p95 is not None else None,
        stable_s=seconds(spec.behavior.stable_window),
        panic_s=seconds(spec.behavior.panic_window),
        panic_factor=spec.behavior.panic_factor,
        down_delay_s=seconds(spec.behavior.scale_down_delay),
        idle_s=seconds(spec.scale_to_zero.idle_after) if spec.scale_to_zero is not None else None,
    )


def recall(status: DeploymentStatus | None) -> Memory:
    """What an operator knows that was just started: what was learned, and no history, so that it does not shrink at once."""
    before = status.autoscaling if status is not None else None
    if before is None:
        return Memory()
    cold_start_s = float(before.cold_start.removesuffix("s")) if before.cold_start else None
    return Memory(learned=float(before.capacity_tokens) or None, cold_start_s=cold_start_s)


def replicas(
    deployment: LLMDeployment, status: DeploymentStatus | None, decision: ScaleDecision | None, running: int
) -> int:
    """How many engines there should be now, within the bounds of now."""
    spec = deployment.spec.autoscaling
    if spec.mode == "HPA" and deployment.spec.replicas:  # until it has looked; at 0 it stands still
        return min(max(deployment.spec.replicas, spec.min), spec.max or 1)
    if spec.mode != "Builtin":
        return deployment.spec.replicas
    if decision is not None:
        wanted = decision.desired
    elif status is not None and status.autoscaling is not None:
        wanted = status.autoscaling.desired
    else:  # autoscaling has just begun: from where it stands
        wanted = running
    if (
        wanted == 0
        and (decision is not None or running == 0)
        and spec.scale_to_zero is not None
        and status_known(status)
    ):
        return 0
    return min(max(wanted, spec.min, 1), spec.max or 1)


def status_known(status: DeploymentStatus | None) -> bool:
    """Has the autoscaler decided anything before?"""
    return status is not None and status.autoscaling is not None


def tell(
    deployment: LLMDeployment, before: AutoscalingStatus | None, decision: ScaleDecision | None, wanted: int, now: str
) -> AutoscalingStatus | None:
    """status.autoscaling; None where somebody else decides."""
    if deployment.spec.autoscaling.mode != "Builtin":
        return None
    before = before or AutoscalingStatus(desired=wanted)
    if decision is None:
        return before.model_copy(update={"desired": wanted})
    history = before.history
    if wanted != before.desired:
        event = ScaleEvent(
            at=now,
            before=before.desired,
            desired=wanted,
            reason=_reason(decision, wanted),
            inputs=_inputs(decision.inputs),
        )
        history = (event, *history)[:HISTORY]
    return AutoscalingStatus(
        desired=wanted,
        capacity_tokens=round(_news(before.capacity_tokens, carries(decision.memory))),
        cold_start=_cold_start(before.cold_start, decision.memory.cold_start_s),
        history=history,
    )


def condition(
    deployment: LLMDeployment, decision: ScaleDecision | None, scaler: Scaler | None = None
) -> Condition | None:
    """AutoscalingActive, but for its time."""
    spec = deployment.spec.autoscaling
    if spec.mode == "Manual":
        return None
    if spec.mode == "HPA":
        return _of_hpa(deployment, scaler)
    if spec.mode == "External":
        reason, message = Reason.SCALED_BY_OTHERS, "whoever writes /scale of this resource decides"
    elif decision is not None and decision.reason is ScaleReason.METRICS_UNAVAILABLE:
        reason = Reason.METRICS_UNAVAILABLE
        message = "engines that are ready do not answer /load; their number does not shrink until they do"
    elif decision is not None and decision.inputs.holds is None and spec.scale_to_zero is not None:
        reason = Reason.METRICS_UNAVAILABLE
        message = "no router answers /demand: until one does nothing goes to zero, and nothing at zero is woken"
    else:
        reason = Reason.FOLLOWING_DEMAND
        message = f"between {spec.min} and {spec.max} engines, as demand asks; spec.replicas is ignored"
        if spec.scale_to_zero is not None and decision is not None and not decision.inputs.holds:
            message += "; not to zero, for there is no router that would hold requests meanwhile"
    return Condition(
        type=ConditionType.AUTOSCALING_ACTIVE,
        status="False" if reason is Reason.METRICS_UNAVAILABLE else "True",
        reason=reason,
        message=message,
    )


def _of_hpa(deployment: LLMDeployment, scaler: Scaler | None) -> Condition:
    """Whoever is suspended has no metrics, and wants none."""
    spec, name = deployment.spec.autoscaling, deployment.metadata.name
    fault = scaler.fault if scaler is not None and not deployment.spec.suspend else ""
    if fault:
        words = f"the HorizontalPodAutoscaler {name} does not scale: {fault}. {REASONS[Reason.HPA_NOT_ACTIVE].fix}"
    else:
        words = f"between {spec.min} and {spec.max} engines, as the HorizontalPodAutoscaler {name} writes spec.replicas"
    return Condition(
        type=ConditionType.AUTOSCALING_ACTIVE,
        status="False" if fault else "True",
        reason=Reason.HPA_NOT_ACTIVE if fault else Reason.SCALED_BY_HPA,
        message=words[:MESSAGE_MAX],
    )


def _reason(decision: ScaleDecision, wanted: int) -> ScaleReason:
    """Of the decision, unless the bounds have changed since."""
    if wanted == decision.desired:
        return decision.reason
    return ScaleReason.AT_MAXIMUM if wanted < decision.desired else ScaleReason.AT_MINIMUM


def _inputs(inputs: Inputs) -> ScaleInputs:
    return ScaleInputs(
        replicas=inputs.replicas,
        ready=inputs.ready,
        running=inputs.running,
        waiting=inputs.waiting,
        kv_cache_utilization=f"{inputs.kv_usage:.2f}",
        ttft_p95=f"{inputs.ttft_p95_s:.2f}s" if inputs.ttft_p95_s is not None else "",
        needed_tokens=round(inputs.offered),
        capacity_tokens=round(inputs.capacity or 0),
    )


def _cold_start(before: str, measured: float | None) -> str:
    seconds_before = float(before.removesuffix("s") or 0)
    told = _news(seconds_before, measured)
    return f"{max(1, round(told))}s" if told else ""


def _news(before: float, now: float | None) -> float:
    return before if now is None or (before and abs(now - before) <= NEWS * before) else now
