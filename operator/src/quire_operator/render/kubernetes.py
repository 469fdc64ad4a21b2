"""A resource as Kubernetes objects: ServiceAccount, Service, Deployment, in the order of creation."""

from collections.abc import Mapping
from typing import Any

from quire_api.deployment import API_VERSION, KIND, LLMDeployment, seconds
from quire_operator.planner.plan import Desired, digest
from quire_operator.planner.rollout import strategy
from quire_operator.render.engine import engine_argv
from quire_operator.render.names import REVISION_LABEL, labels, selector
from quire_operator.render.weights import WeightsPlan, plan_weights
from quire_operator.settings import PROFILES, AcceleratorProfile, OperatorSettings

__all__ = ["ADMIN_PORT", "render", "service_url"]

Manifest = dict[str, Any]

PORT = 8000
ADMIN_PORT = 8001  # the operator reads /load there
PRESTOP_S = 5  # until every kube-proxy and router has taken the pod's address out
MARGIN_S = 15  # after the drain: error events, closing, exit
USER = 10001  # Dockerfile.engine makes it
ENVIRONMENT = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}


def render(deployment: LLMDeployment, settings: OperatorSettings) -> Desired:
    """Everything but the number of replicas stands in the objects; that is applied through /scale."""
    return Desired(
        objects=(_service_account(deployment), _service(deployment), _workload(deployment, settings)),
        replicas=deployment.spec.replicas,
        url=service_url(deployment, settings),
        image=_image(deployment, settings),
        keeps_revisions=True,
    )


def service_url(deployment: LLMDeployment, settings: OperatorSettings) -> str:
    metadata = deployment.metadata
    return f"http://{metadata.name}.{metadata.namespace}.{settings.cluster_domain}/v1"


def _object(deployment: LLMDeployment, api_version: str, kind: str, **parts: Any) -> Manifest:
    """Named after the resource, and owned by it: the API server deletes it with its owner."""
    name, uid = deployment.metadata.name, deployment.metadata.uid
    metadata: Manifest = {"name": name, "namespace": deployment.metadata.namespace, "labels": labels(deployment)}
    if uid:  # none yet in `quire plan`
        owner = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": name,
            "uid": uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


def _service_account(deployment: LLMDeployment) -> Manifest:
    return _object(deployment, "v1", "ServiceAccount", automountServiceAccountToken=False)


def _service(deployment: LLMDeployment) -> Manifest:
    ports = [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]
    return _object(
        deployment, "v1", "Service", spec={"type": "ClusterIP", "selector": selector(deployment), "ports": ports}
    )


def _workload(deployment: LLMDeployment, settings: OperatorSettings) -> Manifest:
    rollout = deployment.spec.rollout
    template: Manifest = {"metadata": {"labels": labels(deployment)}, "spec": _pod(deployment, settings)}
    template["metadata"]["labels"][REVISION_LABEL] = digest(template)[:12]
    return _object(
        deployment,
        "apps/v1",
        "Deployment",
        spec={
            "selector": {"matchLabels": selector(deployment)},
            "strategy": strategy(1 if rollout.strategy == "TerminateFirst" else 0),
            "progressDeadlineSeconds": seconds(
                rollout.progress_deadline
            ),  # for who looks at it; the operator has a clock of its own
            "revisionHistoryLimit": 3,
            "template": template,
        },
    )


def _pod(deployment: LLMDeployment, settings: OperatorSettings) -> Manifest:
    drain, weights = seconds(deployment.spec.drain.timeout), plan_weights(deployment)
    fetching = [_fetcher(deployment, settings, weights)] if weights.command else []
    return {
        "serviceAccountName": deployment.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PRESTOP_S + drain + MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"initContainers": fetching} if fetching else {}),
        "containers": [_engine(deployment, settings, PROFILES[deployment.spec.accelerator.profile], weights)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            *weights.volumes,
        ],
    }


def _fetcher(deployment: LLMDeployment, settings: OperatorSettings, weights: WeightsPlan) -> Manifest:
    return {
        "name": "weights",
        "image": _image(deployment, settings),
        "imagePullPolicy": "IfNotPresent",
        "command": weights.command,
        "env": _variables(ENVIRONMENT),
        **({"envFrom": weights.env_from} if weights.env_from else {}),
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
        "securityContext": _security(read_only_root=True),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *map(dict, weights.mounts)],
    }


def _engine(
    deployment: LLMDeployment, settings: OperatorSettings, profile: AcceleratorProfile, weights: WeightsPlan
) -> Manifest:
    startup = seconds(deployment.spec.health.startup_timeout)
    scraped = deployment.spec.autoscaling.mode == "Builtin"  # who reaches that port can drain: open it for no less
    resources: Manifest = {"requests": dict(profile.requests)}
    if profile.resource is not None:
        resources["limits"] = {profile.resource: "1"}
    return {
        "name": "engine",
        "image": _image(deployment, settings),
        "imagePullPolicy": "IfNotPresent",
        "command": engine_argv(
            deployment,
            model=weights.model,
            device=profile.device,
            host="0.0.0.0",
            port=PORT,
            **({"admin_host": "0.0.0.0", "admin_port": ADMIN_PORT} if scraped else {}),
        ),
        "env": _variables({**ENVIRONMENT, **weights.environment}),
        "ports": [
            {"name": "http", "containerPort": PORT, "protocol": "TCP"},
            *([{"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"}] if scraped else []),
        ],
        "resources": resources,
        "startupProbe": _probe("/readyz", period=2, failures=-(-startup // 2)),
        "readinessProbe": _probe("/readyz", period=2, failures=2),
        # Its own short grace: an engine that is dead has nothing to drain.
        "livenessProbe": {**_probe("/livez", period=10, failures=3), "terminationGracePeriodSeconds": 10},
        "lifecycle": {"preStop": {"sleep": {"seconds": PRESTOP_S}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": _security(read_only_root=profile.read_only_root),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "shm", "mountPath": "/dev/shm"},
            *map(dict, weights.mounts),
        ],
    }


def _security(*, read_only_root: bool) -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only_root,
        "capabilities": {"drop": ["ALL"]},
    }


def _variables(values: Mapping[str, str]) -> list[Manifest]:
    return [{"name": name, "value": value} for name, value in values.items()]


def _probe(path: str, *, period: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


def _image(deployment: LLMDeployment, settings: OperatorSettings) -> str:
    return deployment.spec.image or settings.engine_image
