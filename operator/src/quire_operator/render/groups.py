"""Engines on several nodes: a LeaderWorkerSet, each of whose groups is one engine.

Its controller gives every pod `LWS_LEADER_ADDRESS`, `LWS_GROUP_SIZE` and `LWS_WORKER_INDEX`, from which `quire serve` knows where the
others are. The leader is the engine that is asked; workers compute along, are asked nothing, and end when it does.
"""

from quire_api.deployment import LLMDeployment
from quire_api.errors import InvalidInput
from quire_operator.planner.workloads import GROUPS, rolled
from quire_operator.render.names import NODES_LABEL
from quire_operator.render.objects import Manifest, owned
from quire_operator.settings import OperatorSettings

__all__ = ["leader_worker_set"]

API_VERSION = "leaderworkerset.x-k8s.io/v1"


def leader_worker_set(
    deployment: LLMDeployment, settings: OperatorSettings, template: Manifest, unavailable: int
) -> Manifest:
    """Not named as the resource is: its controller makes a Service of its name, and that one is ours."""
    if not settings.leader_worker_sets:
        raise InvalidInput(
            [
                f"spec.parallelism.nodes: an engine on {deployment.spec.parallelism.nodes} nodes is a LeaderWorkerSet, which this cluster does not have: "
                "install it (https://lws.sigs.k8s.io) and restart the operator, or set nodes to 1"
            ]
        )
    pods = {
        "size": deployment.spec.parallelism.nodes,
        # A rank that loses another ends by itself and is started again where it is: its last words stay to be read.
        "restartPolicy": "None",
    }
    spec = {"startupPolicy": "LeaderCreated", "leaderWorkerTemplate": pods}
    workload = owned(deployment, API_VERSION, GROUPS, f"{deployment.metadata.name}-nodes", spec=spec)
    workload["metadata"]["labels"][NODES_LABEL] = str(deployment.spec.parallelism.nodes)
    return dict(rolled(workload, template, unavailable))
