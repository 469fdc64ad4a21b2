"""What is said beside the verdict: conditions that stand for themselves. Pure."""

from collections.abc import Iterable

from quire_api.deployment import LLMDeployment
from quire_api.reasons import ConditionType, Reason
from quire_api.status import Condition
from quire_operator.planner.conditions import OF_A_VERDICT, Verdict, trouble
from quire_operator.planner.observed import Observed

__all__ = ["available", "degraded", "with_standing"]


def available(deployment: LLMDeployment, observed: Observed) -> Condition:
    """Whether any engine serves; during a roll-out those of the old revision count."""
    if observed.workload.ready:
        return _standing(ConditionType.AVAILABLE, True, Reason.ENGINES_SERVE, "requests are answered")
    if deployment.spec.suspend:
        return _standing(ConditionType.AVAILABLE, False, Reason.SUSPENDED, "spec.suspend is true")
    if deployment.spec.replicas == 0:
        return _standing(ConditionType.AVAILABLE, False, Reason.SCALED_TO_ZERO, "no replica is wanted")
    return _standing(ConditionType.AVAILABLE, False, Reason.NO_ENGINE_SERVES, "Ready says why")


def degraded(deployment: LLMDeployment, observed: Observed, verdict: Verdict) -> Condition | None:
    """Fewer serve than are wanted, which is no reason to call the resource not ready."""
    serving, wanted = observed.workload.updated_ready, deployment.spec.replicas
    if verdict.reason is not Reason.SERVING or serving >= wanted:
        return None
    cause, count = trouble(observed), f"{serving} of {wanted} engines serve"
    if cause is None:
        return _standing(ConditionType.DEGRADED, True, Reason.REPLICAS_MISSING, count)
    return _standing(ConditionType.DEGRADED, True, cause.reason, f"{count}; {cause.message}")


def with_standing(
    conditions: tuple[Condition, ...], standing: Iterable[Condition | None], generation: int, now: str
) -> tuple[Condition, ...]:
    """Those of a verdict among `conditions`, and what holds beside it; a time moves only when the status does."""
    before = {c.type: c for c in conditions}
    told = [c for c in conditions if c.type in OF_A_VERDICT]
    for condition in filter(None, standing):
        known = before.get(condition.type)
        since = known.last_transition_time if known is not None and known.status == condition.status else now
        told.append(condition.model_copy(update={"last_transition_time": since, "observed_generation": generation}))
    return tuple(told)


def _standing(kind: ConditionType, holds: bool, reason: Reason, message: str) -> Condition:
    return Condition(type=kind, status="True" if holds else "False", reason=reason, message=message[:2000])
