"""Where a pod runs: what the resource asks for, and for engines what the profile's nodes want."""

from collections.abc import Iterable, Iterator

from quire_api.deployment import LLMDeployment
from quire_api.placement import Toleration
from quire_operator.render.names import selector
from quire_operator.render.objects import Manifest
from quire_operator.settings import AcceleratorProfile

__all__ = ["place", "place_engine"]

# Kubernetes would wait five minutes, with an engine less for as long. Half a minute is longer than a kubelet takes to be started
# anew, after the 50 s for which it may be silent: then there is little hope, and weights take time to load elsewhere.
LOST_AFTER_S = 30
LOST = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

TOPOLOGY = {"zone": "topology.kubernetes.io/zone", "node": "kubernetes.io/hostname"}


def place(deployment: LLMDeployment) -> Manifest:
    """Of any pod of the resource."""
    scheduling = deployment.spec.scheduling
    return _placed(scheduling.node_selector, scheduling.tolerations, scheduling.priority_class_name)


def place_engine(deployment: LLMDeployment, profile: AcceleratorProfile) -> Manifest:
    scheduling = deployment.spec.scheduling
    nodes = {**profile.node_selector, **scheduling.node_selector}
    tolerations = (*profile.tolerations, *scheduling.tolerations)
    placed = _placed(nodes, (*tolerations, *_of_a_lost_node(tolerations)), scheduling.priority_class_name)
    if scheduling.topology_spread == "none":
        return placed
    spread: Manifest = {
        "maxSkew": 1,
        "topologyKey": TOPOLOGY[scheduling.topology_spread],
        "whenUnsatisfiable": "ScheduleAnyway",  # where GPUs are free matters more
        "labelSelector": {"matchLabels": selector(deployment)},
    }
    if deployment.spec.parallelism.nodes == 1:  # pods of groups have no such label
        spread["matchLabelKeys"] = ["pod-template-hash"]  # those of an older revision are about to go
    return {**placed, "topologySpreadConstraints": [spread]}


def _of_a_lost_node(said: Iterable[Toleration]) -> Iterator[Toleration]:
    """For how long an engine stays on a node that does not answer; whoever names such a taint, or all of them, has said it,
    but for an effect that ends nothing."""
    named = {toleration.key for toleration in said if toleration.effect in (None, "NoExecute")}
    for key in LOST:
        if not named & {key, None}:
            yield Toleration(key=key, operator="Exists", effect="NoExecute", toleration_seconds=LOST_AFTER_S)


def _placed(nodes: dict[str, str], tolerations: Iterable[Toleration], priority: str) -> Manifest:
    tolerated = [t.model_dump(mode="json", by_alias=True, exclude_none=True) for t in tolerations]
    return {
        **({"nodeSelector": nodes} if nodes else {}),
        **({"tolerations": tolerated} if tolerated else {}),
        **({"priorityClassName": priority} if priority else {}),
    }
