"""What stands around the engines: who they are, how they are reached and by whom, how many a node drain may take.

ServiceAccount         without a token: engines talk to no API server
Service                one address for all that serve
Service NAME-engines   headless: the address of each one
NetworkPolicy          the ports that the pods name are open to all, and nothing else; on several nodes all pods of the resource reach each other at any port
PodDisruptionBudget    where there may be more than one; for one alone it would only hold up node drains
"""

from quire_api.deployment import LLMDeployment
from quire_operator.planner.running import ports
from quire_operator.render.names import ENGINE, OWNER_LABEL, ROLE_LABEL, WORKER, selector
from quire_operator.render.objects import Manifest, owned

__all__ = ["around"]


def around(deployment: LLMDeployment, pod: Manifest) -> tuple[Manifest, ...]:
    """`pod` is the spec of the engines' pods, whose ports are to be reached."""
    return (
        owned(deployment, "v1", "ServiceAccount", automountServiceAccountToken=False),
        _service(deployment, None, 80, {"type": "ClusterIP"}),
        _service(deployment, f"{deployment.metadata.name}-engines", 8000, {"clusterIP": "None"}),
        _policy(deployment, pod),
        *([_budget(deployment)] if most_replicas(deployment) > 1 else []),
    )


def most_replicas(deployment: LLMDeployment) -> int:
    autoscaling = deployment.spec.autoscaling
    return (autoscaling.max or 1) if autoscaling.mode in ("Builtin", "HPA") else deployment.spec.replicas


def _service(deployment: LLMDeployment, name: str | None, port: int, kind: Manifest) -> Manifest:
    ports = [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}]
    return owned(deployment, "v1", "Service", name, spec={**kind, "selector": selector(deployment), "ports": ports})


def _policy(deployment: LLMDeployment, pod: Manifest) -> Manifest:
    """Ranks on several nodes meet at ports that nobody knows before."""
    of_engines: Manifest = {"matchLabels": selector(deployment)}
    among: list[Manifest] = []
    if deployment.spec.parallelism.nodes > 1:
        roles = {"key": ROLE_LABEL, "operator": "In", "values": [ENGINE, WORKER]}
        of_engines = {"matchLabels": {OWNER_LABEL: deployment.metadata.name}, "matchExpressions": [roles]}
        among = [{"from": [{"podSelector": of_engines}]}]
    return owned(
        deployment,
        "networking.k8s.io/v1",
        "NetworkPolicy",
        spec={
            "podSelector": of_engines,
            "policyTypes": ["Ingress"],
            # the engine has one port at least: none would mean all of them
            "ingress": [{"ports": ports([{"spec": pod}])}, *among],
        },
    )


def _budget(deployment: LLMDeployment) -> Manifest:
    return owned(
        deployment,
        "policy/v1",
        "PodDisruptionBudget",
        spec={
            "maxUnavailable": deployment.spec.disruption.max_unavailable,
            "selector": {"matchLabels": selector(deployment)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # what does not serve must not hold up a node
        },
    )
