"""What to say of the resource: one verdict, then the conditions that express it.

Exactly one of these holds: unknown, serving, at work (Reconciling), stalled (only a user can help).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from quire_api.deployment import LLMDeployment
from quire_api.status import REASONS, Condition, ConditionType, DeploymentStatus, Reason
from quire_operator.planner.failures import lasting, passing, refusal, told
from quire_operator.planner.observed import Instance, Observed

__all__ = ["MESSAGE_MAX", "Verdict", "judge", "refused", "with_standing", "write_status"]

MESSAGE_MAX = 2000
OF_A_VERDICT = (ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED)


@dataclass(frozen=True, slots=True)
class Verdict:
    ready: Literal["True", "False", "Unknown"]
    reason: Reason
    message: str
    second: ConditionType | None  # Reconciling or Stalled, which holds for the same reason

    @classmethod
    def unknown(cls) -> Self:
        return cls("Unknown", Reason.NOT_OBSERVED, "not looked at yet", ConditionType.RECONCILING)

    @classmethod
    def serving(cls, reason: Reason, message: str) -> Self:
        return cls("True", reason, message, None)

    @classmethod
    def working(cls, reason: Reason, message: str) -> Self:
        return cls("False", reason, message, ConditionType.RECONCILING)

    @classmethod
    def stalled(cls, reason: Reason, message: str) -> Self:
        return cls("False", reason, message[:MESSAGE_MAX], ConditionType.STALLED)


def judge(deployment: LLMDeployment, observed: Observed, pending: bool) -> Verdict:
    """`pending`: there is still something to apply."""
    wanted, workload = deployment.spec.replicas, observed.workload
    if wanted == 0 and workload.replicas == 0 and not pending:
        return Verdict.serving(Reason.SCALED_TO_ZERO, "no replica is wanted")
    settled = workload.current and not pending
    if settled and workload.updated_ready >= wanted and workload.replicas == wanted:
        return Verdict.serving(Reason.SERVING, f"{wanted} of {wanted} engines serve {deployment.model_names[0]}")
    if verdict := _permanent(observed.instances):
        return verdict
    if settled and workload.refused:
        reason = refusal(workload.refused)
        return Verdict.stalled(reason, f"no pod can be made: {workload.refused}. {REASONS[reason].fix}")
    if settled and workload.deadline_exceeded:
        return Verdict.stalled(
            Reason.PROGRESS_DEADLINE_EXCEEDED,
            f"{workload.updated_ready} of {wanted} engines serve, and no more came in time",
        )
    return _work_in_progress(wanted, observed, settled)


def _work_in_progress(wanted: int, observed: Observed, settled: bool) -> Verdict:
    workload = observed.workload
    for instance in observed.instances:
        if instance.current and instance.failure is not None:
            reason = passing(instance.failure)
            words = f"{instance.name} ended and is started again: {told(instance.failure, reason)}"
            return Verdict.working(reason, words[:MESSAGE_MAX])
    count = f"{workload.updated_ready} of {wanted} engines serve"
    if settled and workload.replicas > workload.updated:
        old = workload.replicas - workload.updated
        return Verdict.working(Reason.ROLLING_OUT, f"{count} the new revision; {old} of the old one remain")
    if wanted and workload.ready == 0:
        return Verdict.working(Reason.STARTING, f"{count}; {workload.replicas} exist")
    if workload.replicas != wanted:
        return Verdict.working(Reason.SCALING, f"{count}; {workload.replicas} exist")
    return Verdict.working(Reason.ROLLING_OUT if not settled else Reason.STARTING, count)


def _permanent(instances: Iterable[Instance]) -> Verdict | None:
    """A failure that starting again will not cure."""
    for instance in instances:
        failure = instance.failure
        if failure is None or not instance.current:
            continue
        if (reason := lasting(failure)) is not None:
            return Verdict.stalled(reason, f"{instance.name}: {told(failure, reason)}")
    return None


def refused(status: DeploymentStatus, words: str, now: str) -> DeploymentStatus:
    """`status`, had it not been for an action that was refused."""
    verdict = Verdict.working(Reason.WRITE_REFUSED, f"{words}; tried again with growing pauses"[:MESSAGE_MAX])
    return write_status(status, verdict, status.observed_generation, now)


def write_status(facts: DeploymentStatus, verdict: Verdict, generation: int, now: str) -> DeploymentStatus:
    """`facts`, with the conditions that say `verdict`; a condition's time moves only when its status does."""
    conditions = [_condition(facts, ConditionType.READY, verdict.ready, verdict, generation, now)]
    if verdict.second is not None:
        conditions.append(_condition(facts, verdict.second, "True", verdict, generation, now))
    conditions += [c for c in facts.conditions if c.type not in OF_A_VERDICT]
    return facts.model_copy(update={"conditions": tuple(conditions), "observed_generation": generation})


def with_standing(
    conditions: tuple[Condition, ...], standing: Condition | None, generation: int, now: str
) -> tuple[Condition, ...]:
    """`conditions` with what holds beside the verdict; its time, too, moves only when its status does."""
    others = tuple(c for c in conditions if c.type in OF_A_VERDICT)
    if standing is None:
        return others
    before = next((c for c in conditions if c.type == standing.type), None)
    since = before.last_transition_time if before is not None and before.status == standing.status else now
    told = standing.model_copy(update={"last_transition_time": since, "observed_generation": generation})
    return (*others, told)


def _condition(
    facts: DeploymentStatus,
    kind: ConditionType,
    status: Literal["True", "False", "Unknown"],
    verdict: Verdict,
    generation: int,
    now: str,
) -> Condition:
    before = facts.condition(kind)
    since = before.last_transition_time if before is not None and before.status == status else now
    return Condition(
        type=kind,
        status=status,
        reason=verdict.reason,
        message=verdict.message,
        last_transition_time=since,
        observed_generation=generation,
    )
