"""The Job that asks a source what it has, before any engine pod: revision, bytes, numbers of the footprint.

Its one pod is the container that will fetch, with the same secret and what `podTemplate` adds to that, and none of the rest. The
answer is its termination message. A Job is never changed: the next one has another name (`planner/resolving.py`).
"""

from collections.abc import Mapping
from typing import Any

from quire_api.deployment import LLMDeployment
from quire_operator.planner.failures import FETCHER
from quire_operator.planner.plan import digest
from quire_operator.render.names import ATTEMPT_LABEL, RESOLVER, REVISION_LABEL, ROLE_LABEL, labels
from quire_operator.render.objects import Manifest, owned
from quire_operator.render.patch import patched
from quire_operator.render.weights import choice_of, secret_of

__all__ = ["resolve_job"]

DEADLINE_S = 3600  # far beyond what `quire fetch` itself waits for: only against what nobody has thought of
NOT_FOR_A_JOB = ("containers", "initContainers", "volumes", "restartPolicy", "topologySpreadConstraints")


def resolve_job(deployment: LLMDeployment, pod: Manifest, fetcher: Manifest) -> Manifest:
    """`pod` is what every pod of the resource has, `fetcher` what every container that asks or fetches has."""
    source = deployment.spec.model.source
    container = {
        **fetcher,
        "command": ["quire", "fetch", "resolve", source.uri, *choice_of(source)],
        **({"envFrom": secret_of(source)} if source.secret_ref else {}),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    named = {**labels(deployment), ROLE_LABEL: RESOLVER}
    ours = {
        "metadata": {"labels": named},
        "spec": {
            **pod,
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    template = patched(ours, _of_the_fetcher(deployment.spec.pod_template))
    spec = {"backoffLimit": 0, "activeDeadlineSeconds": DEADLINE_S, "template": template}
    job = owned(deployment, "batch/v1", "Job", f"{deployment.metadata.name}-resolve", spec=spec)
    job["metadata"]["labels"] = {**named, REVISION_LABEL: digest(template)[:12], ATTEMPT_LABEL: "0"}
    return job


def _of_the_fetcher(patch: Mapping[str, Any]) -> Manifest:
    """What is said of the pod and of the container that fetches, with the volumes that it mounts."""
    spec = patch.get("spec")
    if not isinstance(spec, dict):
        return dict(patch)
    said = [each for each in spec.get("initContainers", ()) if each.get("name") == FETCHER]
    mounted = {mount.get("name") for each in said for mount in each.get("volumeMounts", ())}
    volumes = [volume for volume in spec.get("volumes", ()) if volume.get("name") in mounted]
    rest = {name: value for name, value in spec.items() if name not in NOT_FOR_A_JOB}
    return {**patch, "spec": {**rest, "containers": said, "volumes": volumes}}
