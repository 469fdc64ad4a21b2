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

__all__ = ["EXIT_CODES", "Verdict", "judge", "refused", "with_standing", "write_status"]

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


EXIT_CODES: dict[int, Reason] = {  # quire_engine.errors says what each one means
    10: Reason.MODEL_NOT_FOUND,
    11: Reason.OUT_OF_MEMORY,
    12: Reason.ENGINE_REJECTED_CONFIG,
    13: Reason.DEVICE_UNAVAILABLE,
    **{  # of the container that fetches
        outcome.exit_code: Reason(reason.value) for reason, outcome in FETCH_OUTCOMES.items() if not outcome.passing
    },
}
CAUSES: dict[str, Reason] = {
    "OOMKilled": Reason.OUT_OF_MEMORY,
    "ImagePullBackOff": Reason.IMAGE_PULL_DENIED,
    "ErrImagePull": Reason.IMAGE_PULL_DENIED,
    "InvalidImageName": Reason.IMAGE_PULL_DENIED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_DENIED,
}


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
    if settled and workload.deadline_exceeded:
        return Verdict.stalled(
            Reason.PROGRESS_DEADLINE_EXCEEDED,
            f"{workload.updated_ready} of {wanted} engines serve, and no more came in time",
        )
    return _work_in_progress(wanted, observed, settled)


def _work_in_progress(wanted: int, observed: Observed, settled: bool) -> Verdict:
    workload = observed.workload
    failed = next((i for i in observed.instances if i.current and i.failure is not None), None)
    if failed is not None:
        words = f"{failed.name} ended and is started again: {_words(failed.failure)}"
        return Verdict.working(Reason.RESTARTING, words[:MESSAGE_MAX])
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
