"""A resource as Kubernetes objects, in the order of creation: what stands around the engines, then their Deployment or LeaderWorkerSet.

The pod is ours (`_pod`), then the user's (`patch.py`); its revision is the digest of both.
"""

from collections.abc import Mapping

from quire_api.deployment import LLMDeployment, seconds
from quire_operator.planner.failures import FETCHER
from quire_operator.planner.fit import GIB, Room, quantity_bytes
from quire_operator.planner.plan import Desired, digest
from quire_operator.planner.workloads import strategy
from quire_operator.render.around import around
from quire_operator.render.engine import engine_argv
from quire_operator.render.groups import leader_worker_set
from quire_operator.render.job import resolve_job
from quire_operator.render.names import REVISION_LABEL, labels, selector
from quire_operator.render.objects import Manifest, owned
from quire_operator.render.patch import patched
from quire_operator.render.place import place, place_engine
from quire_operator.render.scaler import autoscaler
from quire_operator.render.weights import WeightsPlan, plan_weights
from quire_operator.settings import AcceleratorProfile, OperatorSettings, profile_of

__all__ = ["PORT", "render", "service_url"]

PORT = 8000
PRESTOP_S = 5  # until every kube-proxy and router has taken the pod's address out
MARGIN_S = 15  # after the drain: error events, closing, exit
USER = 10001  # Dockerfile.engine makes it
# A variable and no flag, which an image of the user's may not know. The engine's port, which comes after it: what may reach the one may ask the other.
TELLS = {"QUIRE_FETCH_STATUS_PORT": str(PORT)}
ENVIRONMENT = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1"}


def render(deployment: LLMDeployment, settings: OperatorSettings) -> Desired:
    """Everything but the number of replicas stands in the objects; that is applied through /scale.

    InvalidInput where the resource asks for what this installation has not, or what must stay as it is.
    """
    profile = profile_of(deployment.spec.accelerator.profile, settings.profiles)
    template = _template(deployment, settings, profile)
    asks = deployment.spec.model.source.is_fetched
    common = {**_any_pod(deployment), **place(deployment)}
    return Desired(
        resolve=resolve_job(deployment, common, _fetcher(deployment, settings)) if asks else None,
        room=_room(deployment, profile, template["spec"]),
        objects=(
            *around(deployment, template["spec"]),
            *autoscaler(deployment),
            _workload(deployment, settings, template),
        ),
        replicas=deployment.spec.replicas,
        url=settings.router_url or service_url(deployment, settings),
        image=_image(deployment, settings),
        keeps_revisions=True,
    )


def service_url(deployment: LLMDeployment, settings: OperatorSettings) -> str:
    metadata = deployment.metadata
    return f"http://{metadata.name}.{metadata.namespace}.{settings.cluster_domain}/v1"


def _workload(deployment: LLMDeployment, settings: OperatorSettings, template: Manifest) -> Manifest:
    rollout = deployment.spec.rollout
    unavailable = 1 if rollout.strategy == "TerminateFirst" else 0
    if deployment.spec.parallelism.nodes > 1:
        return leader_worker_set(deployment, settings, template, unavailable)
    return owned(
        deployment,
        "apps/v1",
        "Deployment",
        spec={
            "selector": {"matchLabels": selector(deployment)},
            "strategy": strategy(unavailable),
            "progressDeadlineSeconds": seconds(
                rollout.progress_deadline
            ),  # for who looks at it; the operator has a clock of its own
            "revisionHistoryLimit": 3,
            "template": template,
        },
    )


def _template(deployment: LLMDeployment, settings: OperatorSettings, profile: AcceleratorProfile) -> Manifest:
    """Of the engines' pods, with what the user wants of them."""
    ours = {"metadata": {"labels": labels(deployment)}, "spec": _pod(deployment, settings, profile)}
    template = patched(ours, deployment.spec.pod_template)
    metadata: Manifest = template["metadata"]
    revision = {REVISION_LABEL: digest(template)[:12]}
    return {**template, "metadata": {**metadata, "labels": {**metadata["labels"], **revision}}}


def _pod(deployment: LLMDeployment, settings: OperatorSettings, profile: AcceleratorProfile) -> Manifest:
    drain, weights = seconds(deployment.spec.drain.timeout), plan_weights(deployment)
    fetching = [_fetching(deployment, settings, weights)] if weights.command else []
    return {
        **_any_pod(deployment),
        "terminationGracePeriodSeconds": PRESTOP_S + drain + MARGIN_S,
        **({"initContainers": fetching} if fetching else {}),
        "containers": [_engine(deployment, settings, profile, weights)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_shared_gib(deployment, profile)}Gi"}},
            *weights.volumes,
        ],
        **place_engine(deployment, profile),
    }


def _any_pod(deployment: LLMDeployment) -> Manifest:
    return {
        "serviceAccountName": deployment.metadata.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _fetcher(deployment: LLMDeployment, settings: OperatorSettings) -> Manifest:
    """What asks a source and what fetches from it have in common."""
    return {
        "name": FETCHER,
        "image": _image(deployment, settings),
        "imagePullPolicy": "IfNotPresent",
        "env": _variables(ENVIRONMENT),
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
        "securityContext": _security(read_only_root=True),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _fetching(deployment: LLMDeployment, settings: OperatorSettings, weights: WeightsPlan) -> Manifest:
    fetcher = _fetcher(deployment, settings)
    return {
        **fetcher,
        "command": weights.command,
        "env": _variables({**ENVIRONMENT, **TELLS}),
        **({"envFrom": weights.env_from} if weights.env_from else {}),
        "volumeMounts": [*fetcher["volumeMounts"], *map(dict, weights.mounts)],
    }


def _engine(
    deployment: LLMDeployment, settings: OperatorSettings, profile: AcceleratorProfile, weights: WeightsPlan
) -> Manifest:
    startup = seconds(deployment.spec.health.startup_timeout)
    resources: Manifest = {"requests": dict(profile.requests)}
    if profile.resource is not None:
        resources["limits"] = {profile.resource: str(_devices(deployment, profile))}
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
        ),
        "env": _variables({**ENVIRONMENT, **profile.environment, **weights.environment}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
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


def _room(deployment: LLMDeployment, profile: AcceleratorProfile, pod: Manifest) -> Room | None:
    """None where nobody has said how much memory there is; then only the engine can say that it is too little."""
    if profile.resource is not None:
        count, name = deployment.spec.parallelism.devices, deployment.spec.accelerator.profile
        memory = int((profile.memory_gib or 0) * GIB) * count
        of = f"{f'{count} times' if count > 1 else 'a'} {profile.resource} of profile {name}"
        return Room(bytes=memory, of=of, on_device=True) if memory else None
    engine = next(container for container in pod["containers"] if container["name"] == "engine")
    limit = quantity_bytes(engine["resources"].get("limits", {}).get("memory"))
    nodes = deployment.spec.parallelism.nodes
    of = f"{f'{nodes} times ' if nodes > 1 else ''}the memory limit of its container"
    return Room(bytes=limit * nodes, of=of, on_device=False) if limit else None


def _devices(deployment: LLMDeployment, profile: AcceleratorProfile) -> int:
    """Of one pod."""
    parallelism = deployment.spec.parallelism
    return 0 if profile.resource is None else parallelism.devices // parallelism.nodes


def _shared_gib(deployment: LLMDeployment, profile: AcceleratorProfile) -> int:
    """Of /dev/shm, which processes and drivers share; it counts as memory only as far as it is used."""
    return max(1, 2 * _devices(deployment, profile))


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
