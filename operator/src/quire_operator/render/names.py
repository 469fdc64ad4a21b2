"""Labels and names: how objects and the resource they belong to find each other."""

from quire_api.deployment import GROUP, LLMDeployment

__all__ = [
    "ATTEMPT_LABEL",
    "ENGINE",
    "NODES_LABEL",
    "OURS",
    "OWNER_LABEL",
    "RESOLVER",
    "REVISION_LABEL",
    "ROLE_LABEL",
    "WORKER",
    "labels",
    "selector",
]

OWNER_LABEL = f"{GROUP}/llmdeployment"
ROLE_LABEL = f"{GROUP}/role"
ENGINE = "engine"  # roles of pods
WORKER = "worker"  # of an engine on several nodes: all but the first
RESOLVER = "resolve"
REVISION_LABEL = f"{GROUP}/revision"  # of a pod: digest of the template it came from
NODES_LABEL = f"{GROUP}/nodes"  # of a LeaderWorkerSet: that its groups were made for
ATTEMPT_LABEL = f"{GROUP}/attempt"  # of a Job: how many before it failed
MANAGED = {"app.kubernetes.io/managed-by": "quire"}
OURS = ",".join(f"{name}={value}" for name, value in MANAGED.items())  # what the operator's lists and watches select


def selector(deployment: LLMDeployment) -> dict[str, str]:
    """Selects the engine pods; immutable once a Deployment has it, so never add to it."""
    return {OWNER_LABEL: deployment.metadata.name, ROLE_LABEL: ENGINE}


def labels(deployment: LLMDeployment) -> dict[str, str]:
    return {
        **selector(deployment),
        **MANAGED,
        "app.kubernetes.io/name": "quire-engine",
        "app.kubernetes.io/instance": deployment.metadata.name,
    }
