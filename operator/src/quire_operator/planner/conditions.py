"""What to say of the resource: one verdict, then the conditions that express it.

Exactly one of these holds: unknown, serving, at work (Reconciling), stalled (only a user can help).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

from quire_api.deployment import LLMDeployment
from quire_api.fetching import FETCH_OUTCOMES
from quire_api.status import Condition, ConditionType, DeploymentStatus, Reason
from quire_operator.planner.observed import Failure, Instance, Observed

__all__ = ["EXIT_CODES", "OF_A_VERDICT", "Verdict", "judge", "refused", "trouble", "write_status"]

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


EXIT_CODES: dict[int, Reason] = {  # quire_engine.errors says what each one means
    10: Reason.MODEL_NOT_FOUND,
    11: Reason.OUT_OF_MEMORY,
    12: Reason.ENGINE_REJECTED_CONFIG,
    13: Reason.DEVICE_UNAVAILABLE,
    **{  # of the container that fetches
        outcome.exit_code: Reason(reason.value) for reason, outcome in FETCH_OUTCOMES.items() if not outcome.passing
    },
}
PASSING = {outcome.exit_code for outcome in FETCH_OUTCOMES.values() if outcome.passing}
CAUSES: dict[str, Reason] = {
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "ImagePullBackOff": Reason.IMAGE_PULL_DENIED,
    "ErrImagePull": Reason.IMAGE_PULL_DENIED,
    "InvalidImageName": Reason.IMAGE_PULL_DENIED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_DENIED,
}
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
    return trouble(observed.instances) or _work_in_progress(wanted, observed, settled)


def _was_ready(deployment: LLMDeployment, observed: Observed) -> bool:
    """Of this generation; where others write `replicas`, of any. One engine lost, or asked for by load, is no news of the spec."""
    before = observed.status.condition(ConditionType.READY) if observed.status is not None else None
    if before is None or (before.status, before.reason) != ("True", Reason.SERVING):
        return False
    return (
        before.observed_generation == deployment.metadata.generation or deployment.spec.autoscaling.mode == "External"
    )


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


def trouble(instances: Iterable[Instance]) -> Verdict | None:
    """What keeps engines of the wanted revision from serving: what only a user can mend before what may pass."""
    current = [instance for instance in instances if instance.current and not instance.ready]
    return _permanent(current) or _passing(current)


def _passing(instances: Iterable[Instance]) -> Verdict | None:
    for instance in instances:
        failure = instance.failure
        if failure is not None and failure.again and failure.exit_code not in PASSING:
            words = f"{instance.name} ends again and again, and is started again: {_words(failure)}; read its log"
            return Verdict.working(Reason.CRASH_LOOP, words[:MESSAGE_MAX])
        if failure is not None:
            words = f"{instance.name} ended and is started again: {_words(failure)}"
            return Verdict.working(Reason.RESTARTING, words[:MESSAGE_MAX])
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
        reason = CAUSES.get(failure.cause) or (
            EXIT_CODES.get(failure.exit_code) if failure.exit_code is not None else None
        )
        if reason is not None:
            return Verdict.stalled(reason, f"{instance.name}: {_words(failure)}")
    return None


def _words(failure: Failure | None) -> str:
    if failure is None:
        return ""
    code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
    return (failure.message or failure.cause or "no message") + code


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
