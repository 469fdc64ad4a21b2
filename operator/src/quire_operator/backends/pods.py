"""What a roll-out wants to know of a pod: whether it has a place, and whether its weights are still on their way. Pure."""

from collections.abc import Mapping
from typing import Any

from quire_operator.planner.observed import NoPlace

__all__ = ["fetched_at", "fetching", "no_place"]

Object = Mapping[str, Any]

FETCHER = "weights"  # the init container of render/kubernetes.py


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
