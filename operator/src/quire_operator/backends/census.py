"""How the resources stand, counted for the metrics. Pure: the store in, numbers out."""

from collections import Counter
from dataclasses import dataclass, field

from quire_operator.backends.store import Store
from quire_operator.planner.workloads import WORKLOADS
from quire_operator.reconcile import ResourceKey

__all__ = ["COUNTED", "Census", "census"]

COUNTED = ("Ready", "Available")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    conditions: Counter[tuple[str, str]] = field(default_factory=Counter)  # type and status -> resources
    replicas: dict[ResourceKey, tuple[int, int]] = field(default_factory=dict)  # wanted, ready


def census(store: Store) -> Census:
    """Of the resources that exist; one that we have said nothing of yet is `Unknown`."""
    counted = Census(
        conditions=Counter({(kind, status): 0 for kind in COUNTED for status in ("True", "False", "Unknown")})
    )
    for key in store.resources():
        resource = store.resource(key) or {}
        status = resource.get("status") or {}
        said = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
        for kind in COUNTED:
            counted.conditions[kind, said.get(kind) or "Unknown"] += 1
        workload = next((each for kind in WORKLOADS for each in store.children(key, kind)), {})
        counted.replicas[key] = ((workload.get("spec") or {}).get("replicas") or 0, status.get("readyReplicas") or 0)
    return counted
