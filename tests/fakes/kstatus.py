"""What kstatus (cli-utils, Flux, Argo CD by its rules) makes of a resource of a kind that it does not know: its own order, in Python."""

from typing import Literal

from quire_api.status import DeploymentStatus

__all__ = ["kstatus"]


def kstatus(status: DeploymentStatus, generation: int) -> Literal["Current", "InProgress", "Failed"]:
    """`checkGenericProperties`, then the condition Ready."""
    if status.observed_generation != generation:
        return "InProgress"
    for condition in status.conditions:
        if condition.type == "Reconciling" and condition.status == "True":
            return "InProgress"
        if condition.type == "Stalled" and condition.status == "True":
            return "Failed"
    ready = next((condition for condition in status.conditions if condition.type == "Ready"), None)
    return "Current" if ready is None or ready.status == "True" else "InProgress"
