"""How engines of a new revision take the place of the old ones, and when they give way again. Pure.

    spec --revisions.wanted--> wanted
    wanted, clock --deadline missed? given up?--> target: the wanted revision, or the last good one
    target, pods  --room?--> the workload: template and strategy

    begun    the clock starts anew with every engine more that serves, so that a slow roll-out is not a failed one
    good     the wanted revision serves alone, and lacks engines at most for want of room; from now on it is what is rolled back to
    failed   it missed the deadline: the last good one comes back, and it is not tried again until somebody edits the spec

All that has to be remembered is `status.revision`; everything else is seen. That a revision is given up is written before it
is acted upon: its pods, which say why, are gone soon after, and an operator that dies in between goes on from there.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from quire_api.base import seconds
from quire_api.deployment import LLMDeployment
from quire_api.reasons import ConditionType, Reason
from quire_api.resolved import ModelStatus
from quire_api.rollout import FailedRevision, RevisionStatus
from quire_api.status import Condition
from quire_operator.planner.conditions import Verdict, trouble
from quire_operator.planner.failures import refusal
from quire_operator.planner.observed import Instance, Manifest, Observed, Revision
from quire_operator.planner.revisions import as_object, edit_digest, engine_of, revision_id, wanted
from quire_operator.planner.workloads import GROUPS, least_unavailable, rolled, template_of

__all__ = ["Roll", "frozen", "roll_out"]

ROOM_AFTER_S = 30.0  # without a place for so long, and Auto makes room
MESSAGE_MAX = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    workload: Manifest
    kept: tuple[Manifest, ...]  # templates
    target: Revision  # whose template the workload has
    status: RevisionStatus
    steady: bool  # the wanted revision runs, and has served
    conditions: tuple[Condition, ...]
    verdict: Verdict | None  # which prevails over what is seen of the engines
    requeue_after: float | None


def roll_out(
    deployment: LLMDeployment, pin: ModelStatus | None, workload: Manifest, observed: Observed, now: str
) -> Roll:
    """`workload` is what would be rendered now; `deployment` has as many replicas as are wanted now."""
    history = {revision.id: revision for revision in observed.history}
    before = (observed.status.revision if observed.status is not None else None) or RevisionStatus()
    asked, newer = wanted(deployment, pin, template_of(workload), history, before.last_good)
    status = _follow(deployment, asked, before, observed, now)
    left = None if status.failed is not None else _left(deployment, status, observed, now)
    overdue = left is not None and left <= 0
    giving_up = overdue and deployment.spec.rollout.auto_rollback and status.last_good in history
    if giving_up:
        status, overdue = _give_up(deployment, status, observed), False
    target = asked if giving_up or status.failed is None else history.get(status.last_good, asked)
    unavailable = max(
        least_unavailable(workload, deployment.spec.replicas),
        _unavailable(deployment, target, status, before.last_good, observed, now),
    )
    last_good = [history[status.last_good]] if status.last_good in history and status.last_good != asked.id else []
    return Roll(
        workload=rolled(workload, target.template, unavailable),
        kept=tuple(as_object(workload, revision) for revision in (*last_good, asked)),
        target=target,
        status=status,
        steady=status.failed is None and asked.id == status.last_good == observed.workload.revision,
        conditions=tuple(_conditions(deployment, status, observed, overdue, unavailable, newer, workload)),
        verdict=_verdict(deployment, status, observed, overdue),
        requeue_after=0.0 if giving_up else _look_again(deployment, observed, unavailable, left, now),
    )


def frozen(workload: Manifest, observed: Observed) -> Manifest | None:
    """`workload` such that what has begun stands still; None while there is nothing."""
    live = next((r for r in observed.history if r.id == observed.workload.revision), None)
    if live is None:
        return None
    still = rolled(workload, live.template, observed.workload.unavailable)
    return {**still, "spec": {**still["spec"], "paused": True}}


def _follow(
    deployment: LLMDeployment, asked: Revision, before: RevisionStatus, observed: Observed, now: str
) -> RevisionStatus:
    """What is to be remembered of the revision that the spec asks for, if it is not given up now."""
    failed, workload = before.failed, observed.workload
    if deployment.spec.paused:
        return before.model_copy(update={"since": ""})
    returnable = any(revision.id == before.last_good for revision in observed.history)
    if failed is not None and returnable and (failed.revision, failed.edit) == (asked.id, edit_digest(deployment)):
        return before
    runs = workload.current and workload.revision == asked.id
    if asked.id == before.last_good or (runs and _is_good(observed)):
        return RevisionStatus(current=asked.id, last_good=asked.id)
    since, ready, room = (before.since, before.ready, before.room) if before.current == asked.id else ("", 0, 0)
    served = workload.updated_ready if runs else 0
    if deployment.spec.replicas == 0 or workload.revision != asked.id:
        since = ""  # nobody wants it to make progress, or it could not be applied
    elif not since or served > ready:
        since = now
    return RevisionStatus(
        current=asked.id,
        last_good=before.last_good,
        since=since,
        ready=max(served, ready),
        room=max(workload.ready, room),
    )


def _is_good(observed: Observed) -> bool:
    """It serves alone; what else is wanted of it has no place, which is no fault of its."""
    workload = observed.workload
    waiting = [i for i in observed.instances if i.current and not i.ready]
    return (
        workload.updated_ready > 0
        and workload.replicas == workload.updated
        and all(i.no_place is not None for i in waiting)
    )


def _left(deployment: LLMDeployment, status: RevisionStatus, observed: Observed, now: str) -> float | None:
    """Seconds until the deadline; None while the clock stands still."""
    current = [i for i in observed.instances if i.current]
    if not status.since or any(i.fetching for i in current):
        return None
    began = max(_moment(when) for when in (status.since, *(i.fetched_at for i in current if i.fetched_at)))
    return began + seconds(deployment.spec.rollout.progress_deadline) - _moment(now)


def _give_up(deployment: LLMDeployment, status: RevisionStatus, observed: Observed) -> RevisionStatus:
    cause = trouble(observed)
    reason = cause.reason if cause is not None else Reason.PROGRESS_DEADLINE_EXCEEDED
    message = cause.message if cause is not None else "its engines did not become ready"
    failed = FailedRevision(
        revision=status.current, edit=edit_digest(deployment), reason=reason, message=message[:MESSAGE_MAX]
    )
    return RevisionStatus(current=status.last_good, last_good=status.last_good, failed=failed)


def _unavailable(
    deployment: LLMDeployment, target: Revision, status: RevisionStatus, good_before: str, observed: Observed, now: str
) -> int:
    """How many engines may be missing, so that an old one can go before a new one comes; 0: a new one comes first."""
    workload, choice, wanted = observed.workload, deployment.spec.rollout.strategy, deployment.spec.replicas
    begins = target.id != workload.revision and workload.revision == good_before
    if choice == "SurgeFirst" or (choice == "Auto" and begins):  # there may be room by now
        return 0
    # Once Auto makes room it goes on with that, else every engine would cost those 30 s.
    if choice == "Auto" and not workload.unavailable and not any(a >= ROOM_AFTER_S for a in _ages(observed, now)):
        return 0
    if target.id == status.last_good:
        return max(1, workload.unavailable)
    lacking = max(0, wanted - status.room)  # there has never been room for these, so that they are missing anyway
    return min(max(1, wanted), 1 + lacking)


def _ages(observed: Observed, now: str) -> Iterator[float]:
    """For how long each new engine has had no place, while there are old ones that could make room."""
    workload = observed.workload
    if workload.replicas > workload.updated:
        if workload.current and workload.refused and refusal(workload.refused) is Reason.QUOTA_EXCEEDED:
            yield ROOM_AFTER_S  # there is no pod that could say since when
        for instance in observed.instances:
            if instance.current and instance.no_place is not None:
                yield _moment(now) - _moment(instance.no_place.since)


def _look_again(
    deployment: LLMDeployment, observed: Observed, unavailable: int, left: float | None, now: str
) -> float | None:
    """Seconds until time alone changes something."""
    waits = [] if left is None or left <= 0 else [left]
    if deployment.spec.rollout.strategy == "Auto" and not unavailable:
        waits += [ROOM_AFTER_S - age for age in _ages(observed, now)]
    return max(1.0, min(waits)) if waits else None


def _verdict(deployment: LLMDeployment, status: RevisionStatus, observed: Observed, overdue: bool) -> Verdict | None:
    if status.failed is not None:
        return Verdict.stalled(Reason.ROLLED_BACK, _rolled_back(deployment, status))
    if not overdue:
        return None
    cause = trouble(observed)
    if cause is not None and cause.second is ConditionType.STALLED:
        return cause
    return Verdict.stalled(Reason.PROGRESS_DEADLINE_EXCEEDED, _overdue(deployment, observed, cause))


def _conditions(
    deployment: LLMDeployment,
    status: RevisionStatus,
    observed: Observed,
    overdue: bool,
    unavailable: int,
    newer: bool,
    fresh: Manifest,
) -> Iterator[Condition]:
    if status.failed is not None:
        yield _progressing(False, Reason.ROLLED_BACK, _rolled_back(deployment, status))
    elif overdue:
        yield _progressing(False, Reason.PROGRESS_DEADLINE_EXCEEDED, _overdue(deployment, observed, trouble(observed)))
    elif status.current != status.last_good and deployment.spec.replicas and not deployment.spec.paused:
        count = (
            f"{observed.workload.updated_ready} of {deployment.spec.replicas} engines serve revision {status.current}"
        )
        if unavailable and status.last_good:
            alone = ", and none serves meanwhile" if deployment.spec.replicas == 1 else ""
            words = f"{count}; an old engine ends before a new one starts{_why(deployment, fresh, observed.instances)}{alone}"
            yield _progressing(True, Reason.TERMINATING_FIRST, words)
        else:
            yield _progressing(True, Reason.ROLLING_OUT, count)
    if newer:
        template = template_of(fresh)
        image = _image(template)
        words = (
            f"this operator would make other pods of this spec (image {image}, revision {revision_id(template)}); "
            "annotate the resource with quire.dev/upgrade=true, or edit the spec"
        )
        yield Condition(
            type=ConditionType.UPGRADE_WAITING, status="True", reason=Reason.NEWER_TEMPLATE, message=words[:2000]
        )


def _why(deployment: LLMDeployment, workload: Manifest, instances: Iterable[Instance]) -> str:
    if deployment.spec.rollout.strategy == "TerminateFirst":
        return ", as spec.rollout.strategy says"
    if least_unavailable(workload, deployment.spec.replicas):
        return f", as a {GROUPS} of one group does"
    words = next((i.no_place.message for i in instances if i.current and i.no_place is not None), "")
    return ", for there is no room for one more" + (f" ({words})" if words else "")


def _rolled_back(deployment: LLMDeployment, status: RevisionStatus) -> str:
    failed = status.failed
    assert failed is not None
    return (
        f"revision {failed.revision} had no engine more that serves for {deployment.spec.rollout.progress_deadline} "
        f"({failed.reason}: {failed.message}); rolled back to {status.last_good}. Mend that and edit the spec: "
        "any change but one of replicas, suspend or paused tries again"
    )


def _overdue(deployment: LLMDeployment, observed: Observed, cause: Verdict | None) -> str:
    rollout = deployment.spec.rollout
    count = f"{observed.workload.updated_ready} of {deployment.spec.replicas} engines serve"
    why = f": {cause.message}" if cause is not None else ""
    then = "there is none to roll back to" if rollout.auto_rollback else "rollout.autoRollback is false"
    return f"{count}, and no more came for {rollout.progress_deadline}{why}; {then}. Correct the spec"


def _progressing(holds: bool, reason: Reason, message: str) -> Condition:
    return Condition(
        type=ConditionType.PROGRESSING, status="True" if holds else "False", reason=reason, message=message[:2000]
    )


def _image(template: Manifest) -> str:
    return str(engine_of(template).get("image", ""))


def _moment(when: str) -> float:
    """What nobody can read is long ago: then it is over, and begins anew."""
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0
