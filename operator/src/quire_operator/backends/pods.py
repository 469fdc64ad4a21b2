"""What is read of the objects around a pod: whether there may be one, whether it has a place, whether its weights are still on
their way; and what an autoscaler says of itself. Pure."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quire_operator.planner.failures import lasting
from quire_operator.planner.observed import Failure, Instance, NoPlace, Progress, Scaler
from quire_operator.planner.revisions import revision_id
from quire_operator.render.kubernetes import PORT
from quire_operator.render.names import ENGINE, ROLE_LABEL, WORKER

__all__ = [
    "Asked",
    "address_of",
    "engines_of",
    "failure_of",
    "fetching",
    "is_ready",
    "pods_of_role",
    "refusal_of",
    "scaler_of",
]

Object = Mapping[str, Any]

GROUP_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
FETCHER = "weights"  # the init container of render/kubernetes.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What no object says, and somebody is asked for; by uid."""

    refusal: Callable[[str], str] = lambda uid: ""  # why a Job has no pod
    progress: Callable[[str], Progress | None] = lambda uid: None  # how far a pod's fetch is


def pods_of_role(pods: Iterable[Object], role: str) -> Iterator[Object]:
    """Those which are not about to go."""
    for pod in pods:
        metadata = pod["metadata"]
        if metadata.get("labels", {}).get(ROLE_LABEL) == role and not metadata.get("deletionTimestamp"):
            yield pod


def engines_of(pods: Sequence[Object], revision: str | None, asked: Asked) -> tuple[Instance, ...]:
    """`revision` is the wanted one. An engine on several nodes is its leader; what one of its workers lacks, it lacks."""
    workers = list(pods_of_role(pods, WORKER))
    return tuple(
        _whole(
            _instance(leader, revision, asked),
            [_instance(worker, revision, asked) for worker in workers if _group(worker) == _group(leader)],
        )
        for leader in pods_of_role(pods, ENGINE)
    )


def _group(pod: Object) -> str | None:
    return (pod["metadata"].get("labels") or {}).get(GROUP_LABEL)


def _whole(leader: Instance, workers: Sequence[Instance]) -> Instance:
    """A worker runs while it waits for the others, so that being ready says nothing: it is asked how it ended as long as its leader does not serve."""
    if leader.ready:
        return replace(leader, failure=None)
    parts = (leader, *workers)
    failures = [
        replace(part.failure, pod=part.name if part is not leader else "") for part in parts if part.failure is not None
    ]
    fetching = [part for part in parts if part.fetching]
    return replace(
        leader,
        failure=next((failure for failure in failures if lasting(failure)), next(iter(failures), None)),
        no_place=next((part.no_place for part in parts if part.no_place is not None), None),
        fetching=bool(fetching),
        progress=min((p.progress for p in fetching if p.progress), key=lambda each: each.percent, default=None),
        fetched_at=max(part.fetched_at for part in parts),
    )


def _instance(pod: Object, revision: str | None, asked: Asked) -> Instance:
    status = pod.get("status") or {}
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions") or [])
    statuses = [c for kind in ("initContainerStatuses", "containerStatuses") for c in status.get(kind) or []]
    failures = [failure_of(container) for container in statuses]
    return Instance(
        name=pod["metadata"]["name"],
        current=revision_id(pod) == revision,
        ready=ready,
        failure=next((f for f in failures if f), None),
        no_place=_no_place(pod),
        fetching=fetching(pod),
        progress=asked.progress(pod["metadata"].get("uid", "")) if fetching(pod) else None,
        fetched_at=_fetched_at(pod),
    )


def failure_of(container: Mapping[str, Any]) -> Failure | None:
    """How a container ended last, or why it cannot start; None while it runs and never ended."""
    name, state = container.get("name", "engine"), container.get("state") or {}
    waiting = state.get("waiting") or {}
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if ended and ended.get("exitCode"):
        message = (ended.get("message") or "").strip().rpartition("\n")[2]
        cause, again = ended.get("reason") or "", waiting.get("reason") == "CrashLoopBackOff"
        return Failure(message=message, exit_code=ended["exitCode"], cause=cause, container=name, again=again)
    if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return Failure(message=waiting.get("message") or "", cause=waiting["reason"], container=name)
    return None


def is_ready(pod: Object) -> bool:
    status = pod.get("status") or {}
    conditions = status.get("conditions") or []
    return bool(status.get("podIP")) and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def address_of(pod: Object) -> str:
    """host:port of the engine, and before it of the container that fetches."""
    address = pod["status"]["podIP"]
    return f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"


def refusal_of(revision: str, replica_sets: Iterable[Object]) -> str:
    """Why the API server will not have one more pod of `revision`. A Deployment says it of its old ones as well."""
    for each in replica_sets:
        if revision_id(each) == revision:  # its labels are those of its pods
            for condition in (each.get("status") or {}).get("conditions") or []:
                if (condition["type"], condition["status"]) == ("ReplicaFailure", "True"):
                    return str(condition.get("message") or "")
    return ""


def scaler_of(autoscaler: Object) -> Scaler:
    """Of a HorizontalPodAutoscaler."""
    told = {c["type"]: c for c in (autoscaler.get("status") or {}).get("conditions") or []}
    faults = (told[kind] for kind in ("AbleToScale", "ScalingActive") if kind in told)
    message = next((c.get("message") or c.get("reason") or "" for c in faults if c["status"] == "False"), "")
    return Scaler(fault=str(message).rstrip(". "))


def _no_place(pod: Object) -> NoPlace | None:
    """The scheduler has looked for a node, and found none."""
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if (condition["type"], condition["status"], condition.get("reason")) == (
            "PodScheduled",
            "False",
            "Unschedulable",
        ):
            message = (condition.get("message") or "no node takes it").rstrip(". ")
            return NoPlace(since=condition.get("lastTransitionTime") or "", message=message)
    return None


def fetching(pod: Object) -> bool:
    return "running" in _fetcher(pod)


def _fetched_at(pod: Object) -> str:
    return (_fetcher(pod).get("terminated") or {}).get("finishedAt") or ""


def _fetcher(pod: Object) -> Object:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return next((c.get("state") or {} for c in statuses if c.get("name") == FETCHER), {})
