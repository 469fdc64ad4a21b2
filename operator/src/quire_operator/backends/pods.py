"""What is read of the objects around a pod: whether there may be one, whether it has a place, whether its weights are still on
their way; and what an autoscaler says of itself. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from quire_operator.planner.observed import NoPlace, Scaler
from quire_operator.planner.revisions import revision_id

__all__ = ["fetched_at", "fetching", "no_place", "refusal_of", "scaler_of"]

Object = Mapping[str, Any]

FETCHER = "weights"  # the init container of render/kubernetes.py


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


def no_place(pod: Object) -> NoPlace | None:
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


def fetched_at(pod: Object) -> str:
    return (_fetcher(pod).get("terminated") or {}).get("finishedAt") or ""


def _fetcher(pod: Object) -> Object:
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    return next((c.get("state") or {} for c in statuses if c.get("name") == FETCHER), {})
