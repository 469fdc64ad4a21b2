"""What to say of the resource: one verdict, then the conditions that express it.

Exactly one of these holds: unknown, serving, at work (Reconciling), stalled (only a user can help).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from quire_api.deployment import LLMDeployment
from quire_api.reasons import REASONS, ConditionType, Reason
from quire_api.status import Condition, DeploymentStatus
from quire_operator.planner.failures import lasting, passing, refusal, told
from quire_operator.planner.observed import Instance, Observed, Workload

__all__ = ["MESSAGE_MAX", "OF_A_VERDICT", "Verdict", "judge", "refused", "trouble", "write_status"]

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

    @classmethod
    def paused(cls, message: str) -> Self:
        words = f"spec.paused is true, so nothing is changed: set it to false. {message}"
        return cls("False", Reason.PAUSED, words[:MESSAGE_MAX], ConditionType.STALLED)


ROOM: tuple[tuple[str, str], ...] = (  # words of the scheduler, and what to do; the first that fits
    ("Insufficient", "free what it lacks, add a node, or lower the number of replicas"),
    ("unbound immediate PersistentVolumeClaims", "see why the claim is not bound: `kubectl describe pvc`"),
    ("PersistentVolumeClaim", "create the claim"),
    ("untolerated taint", "take the taint off a node, or add a node without it"),
    ("node affinity/selector", "label a node as the pod asks, or add such a node"),
    ("no nodes available", "add a node"),
)


def judge(deployment: LLMDeployment, observed: Observed, pending: bool, steady: bool) -> Verdict:
    """`pending`: there is still something to apply. `steady`: the wanted revision has served before, and none takes its place."""
    wanted, workload = deployment.spec.replicas, observed.workload
    if wanted == 0 and workload.replicas == 0 and not pending:
        if deployment.spec.suspend:
            return Verdict.serving(Reason.SUSPENDED, "spec.suspend is true: set it to false to serve")
        return Verdict.serving(Reason.SCALED_TO_ZERO, "no replica is wanted")
    settled = workload.current and not pending
    if settled and workload.updated_ready >= wanted and workload.replicas == wanted:
        return Verdict.serving(Reason.SERVING, f"{wanted} of {wanted} engines serve {deployment.model_names[0]}")
    if steady and workload.updated_ready and _was_ready(deployment, observed):
        return Verdict.serving(Reason.SERVING, f"{workload.updated_ready} engines serve, and {wanted} are wanted")
    return trouble(observed) or _work_in_progress(wanted, observed, settled)


def _was_ready(deployment: LLMDeployment, observed: Observed) -> bool:
    """Of this generation; where others write `replicas`, of any. One engine lost, or asked for by load, is no news of the spec."""
    before = observed.status.condition(ConditionType.READY) if observed.status is not None else None
    if before is None or (before.status, before.reason) != ("True", Reason.SERVING):
        return False
    others = deployment.spec.autoscaling.mode in ("HPA", "External")
    return others or before.observed_generation == deployment.metadata.generation


def _work_in_progress(wanted: int, observed: Observed, settled: bool) -> Verdict:
    workload = observed.workload
    count = f"{workload.updated_ready} of {wanted} engines serve"
    if settled and workload.replicas > workload.updated:
        old = workload.replicas - workload.updated
        return Verdict.working(Reason.ROLLING_OUT, f"{count} the new revision; {old} of the old one remain")
    if wanted and workload.ready == 0:
        return Verdict.working(Reason.STARTING, f"{count}; {workload.replicas} exist")
    if workload.replicas != wanted:
        return Verdict.working(Reason.SCALING, f"{count}; {workload.replicas} exist")
    return Verdict.working(Reason.ROLLING_OUT if not settled else Reason.STARTING, count)


def trouble(observed: Observed) -> Verdict | None:
    """What keeps engines of the wanted revision from serving: what only a user can mend before what may pass."""
    waiting = [instance for instance in observed.instances if instance.current and not instance.ready]
    return _permanent(waiting) or _refusal(observed.workload) or _passing(waiting)


def _refusal(workload: Workload) -> Verdict | None:
    if not (workload.current and workload.refused):
        return None
    reason = refusal(workload.refused)
    return Verdict.stalled(reason, f"no pod can be made: {workload.refused}. {REASONS[reason].fix}")


def _passing(instances: Iterable[Instance]) -> Verdict | None:
    for instance in instances:
        failure = instance.failure
        if failure is None:
            continue
        reason, often = passing(failure), ""
        if failure.again and reason is Reason.RESTARTING:
            reason, often = Reason.CRASH_LOOP, " again and again"
        words = f"{failure.pod or instance.name} ended{often} and is started again: {told(failure, reason)}"
        return Verdict.working(reason, words[:MESSAGE_MAX])
    for instance in instances:
        if instance.no_place is not None:
            words = f"{instance.name} has no place: {instance.no_place.message}; {_room(instance.no_place.message)}"
            return Verdict.working(Reason.UNSCHEDULABLE, words[:MESSAGE_MAX])
    return None


def _room(message: str) -> str:
    """What makes room, by the scheduler's words."""
    short = [word.split("/")[1].rstrip(".,") for word in message.split() if "/" in word and not word[0].isdigit()]
    if "Insufficient" in message and short:
        return f"free a {short[0]}, add a node that has one, or lower the number of replicas"
    return next((fix for words, fix in ROOM if words in message), "make room for it, or lower the number of replicas")


def _permanent(instances: Iterable[Instance]) -> Verdict | None:
    """A failure that starting again will not cure."""
    for instance in instances:
        failure = instance.failure
        if failure is None or not instance.current:
            continue
        if (reason := lasting(failure)) is not None:
            return Verdict.stalled(reason, f"{failure.pod or instance.name}: {told(failure, reason)}")
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
