"""Where a pod runs: what the resource asks for, and for engines what the profile's nodes want."""

from collections.abc import Iterable

from quire_api.deployment import LLMDeployment
from quire_api.placement import Toleration
from quire_operator.render.names import selector
from quire_operator.render.objects import Manifest
from quire_operator.settings import AcceleratorProfile

__all__ = ["place", "place_engine"]

TOPOLOGY = {"zone": "topology.kubernetes.io/zone", "node": "kubernetes.io/hostname"}


def place(deployment: LLMDeployment) -> Manifest:
    """Of any pod of the resource."""
    scheduling = deployment.spec.scheduling
    return _placed(scheduling.node_selector, scheduling.tolerations, scheduling.priority_class_name)


def place_engine(deployment: LLMDeployment, profile: AcceleratorProfile) -> Manifest:
    scheduling = deployment.spec.scheduling
    nodes = {**profile.node_selector, **scheduling.node_selector}
    placed = _placed(nodes, (*profile.tolerations, *scheduling.tolerations), scheduling.priority_class_name)
    if scheduling.topology_spread == "none":
        return placed
    spread = {
        "maxSkew": 1,
        "topologyKey": TOPOLOGY[scheduling.topology_spread],
        "whenUnsatisfiable": "ScheduleAnyway",  # where GPUs are free matters more
        "labelSelector": {"matchLabels": selector(deployment)},
        "matchLabelKeys": ["pod-template-hash"],  # those of an older revision are about to go
    }
    return {**placed, "topologySpreadConstraints": [spread]}


def _placed(nodes: dict[str, str], tolerations: Iterable[Toleration], priority: str) -> Manifest:
    tolerated = [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in tolerations]
    return {
        **({"nodeSelector": nodes} if nodes else {}),
        **({"tolerations": tolerated} if tolerated else {}),
        **({"priorityClassName": priority} if priority else {}),
    }
