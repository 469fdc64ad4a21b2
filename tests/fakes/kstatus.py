"""What kstatus makes of a resource of a kind that it does not know: its own order, in Python.

e2e compares it, state by state, with the library itself (`e2e/kubernetes/gitops.py`).
"""

from typing import Any, Literal

from quire_api.status import DeploymentStatus

__all__ = ["kstatus", "kstatus_of"]


Verdict = Literal["Current", "InProgress", "Failed", "Terminating"]


def kstatus_of(status: DeploymentStatus, generation: int) -> Verdict:
    written = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return kstatus({"metadata": {"generation": generation}, "status": written})


def kstatus(resource: dict[str, Any]) -> Verdict:
    """`checkGenericProperties`, then the condition Ready."""
    metadata, status = resource["metadata"], resource.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    conditions = status.get("conditions", ())
    for condition in conditions:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
    return "Current" if ready is None or ready["status"] == "True" else "InProgress"
