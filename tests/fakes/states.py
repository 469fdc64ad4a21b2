"""An LLMDeployment in every state that it can be in, with the status that the operator gives it there.

Made by the real planner, most of them on the small cluster; what tools of others are to make of each stands beside it. Two
readers: `tests/quire_operator/test_states.py`, and e2e, which asks the tools themselves.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fakes.resources import good
from fakes.small_cluster import KEY, SmallCluster

from quire_operator.backends.pods import Asked
from quire_operator.planner.observed import Observed
from quire_operator.planner.plan import plan
from quire_operator.render import kubernetes
from quire_operator.settings import OperatorSettings

__all__ = ["State", "states"]

DEADLINE_S = 60
ANSWER = '{"revision": "c0ffee", "bytes": 1, "parameters": 8589934592, "dtype": "bfloat16", "kvBytesPerToken": 1024}'
MEMORY = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "1Gi"}}}]}}


@dataclass(frozen=True)
class State:
    name: str
    resource: dict[str, Any]
    kstatus: str
    argo: str
    reason: str  # of Ready


CURRENT, WORKING, FAILED = ("Current", "Healthy"), ("InProgress", "Progressing"), ("Failed", "Degraded")
SUSPENDED, PAUSED = ("Current", "Suspended"), ("Failed", "Suspended")


def states() -> Iterator[State]:
    resource = spec()
    yield _state(
        "unseen", {**resource, "metadata": {**resource["metadata"], "generation": 1}}, ("Current", "Progressing")
    )
    yield _state("fresh", _fresh(), WORKING)
    for name, cluster, said in (*_at_work(), *_at_rest(), *_stalled(), *_of_the_source()):
        yield _state(name, cluster.objects["LLMDeployment", KEY.name], said)
    ready = _serving().objects["LLMDeployment", KEY.name]
    metadata = {**ready["metadata"], "generation": ready["metadata"]["generation"] + 1}
    yield _state("edited, and not seen yet", {**ready, "metadata": metadata}, WORKING)
    metadata = {**ready["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}
    yield _state("being deleted", {**ready, "metadata": metadata}, ("Terminating", "Progressing"))


def spec(image: str = "good:1", replicas: int = 2, **changes: Any) -> dict[str, Any]:
    rollout = {"progressDeadline": f"{DEADLINE_S}s", **changes.pop("rollout", {})}
    return good(
        spec__image=image, spec__replicas=replicas, spec__rollout=rollout, spec__health={"startupTimeout": "30s"}, **changes
    )  # fmt: skip


def _at_work() -> Iterator[tuple[str, SmallCluster, tuple[str, str]]]:
    yield "loading", _after(2), WORKING
    yield "rolling", _edited(4, "good:2"), WORKING
    yield "no place", _edited(10, "good:2", gpus=2), WORKING
    yield "terminating first", _edited(34, "good:2", gpus=2), WORKING
    yield "more are wanted", _edited(2, replicas=4), WORKING
    yield "ending again and again", _after(20, "bad:1"), WORKING
    yield "a write is refused", _edited(20, "good:2", refuses="Deployment"), WORKING
    yield "suspended, engines still there", _edited(1, spec__suspend=True), WORKING


def _at_rest() -> Iterator[tuple[str, SmallCluster, tuple[str, str]]]:
    yield "ready", _serving(), CURRENT
    yield "an engine less than wanted", _lost(), CURRENT
    yield "at zero", _edited(20, replicas=0), CURRENT
    yield "scaled by others", _edited(20, spec__autoscaling={"mode": "External"}), CURRENT
    yield "an HPA without metrics", _without_metrics(), CURRENT
    yield "a newer template waits", _upgraded(), CURRENT
    yield "paused at rest", _edited(20, spec__paused=True), CURRENT
    yield "suspended", _edited(20, spec__suspend=True), SUSPENDED
    yield "paused, and changes wait", _edited(20, "good:2", spec__paused=True), PAUSED


def _stalled() -> Iterator[tuple[str, SmallCluster, tuple[str, str]]]:
    yield "rolled back", _edited(3 * DEADLINE_S, "bad:2"), FAILED
    yield "deadline missed", _after(3 * DEADLINE_S, "never:1"), FAILED
    yield "image denied", _after(20, "denied:1"), FAILED
    yield "quota exceeded", _after(20, quota=1), FAILED
    yield "invalid", _edited(5, spec__accelerator={"profile": "nowhere"}), FAILED
    yield "name conflict", _taken(), FAILED


def _of_the_source() -> Iterator[tuple[str, SmallCluster, tuple[str, str]]]:
    yield "resolving", _asking(), WORKING
    yield "source unreachable", _asking(exitCode=24, message="SourceUnreachable: no answer"), WORKING
    yield "model access denied", _asking(exitCode=21, message="ModelAccessDenied: gated"), FAILED
    yield "model not found", _asking(exitCode=20, message="ModelNotFound: no such model"), FAILED
    yield "does not fit", _asking(exitCode=0, message=ANSWER), FAILED
    yield "nobody may ask", _asking(refusal="its pod is forbidden: exceeded quota: pods"), FAILED


def _state(name: str, resource: dict[str, Any], said: tuple[str, str]) -> State:
    conditions = resource.get("status", {}).get("conditions", [])
    reason = next((c["reason"] for c in conditions if c["type"] == "Ready"), "")
    return State(name, copy.deepcopy(resource), *said, reason)


def _fresh() -> dict[str, Any]:
    resource = spec(metadata__generation=1)
    settings = OperatorSettings(engine_image="good:1")
    told = plan(
        resource, Observed(status=None), lambda d: kubernetes.render(d, settings), "2026-01-01T00:00:00Z"
    ).status
    return {**resource, "status": told.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _after(seconds: int, image: str = "good:1", quota: int = 100) -> SmallCluster:
    cluster = SmallCluster(quota=quota)
    cluster.apply(spec(image))
    cluster.run(seconds)
    return cluster


def _serving(gpus: int = 8) -> SmallCluster:
    cluster = SmallCluster(gpus=gpus)
    cluster.apply(spec())
    cluster.run(20)
    return cluster


def _edited(seconds: int, image: str = "good:1", gpus: int = 8, refuses: str = "", **changes: Any) -> SmallCluster:
    cluster = _serving(gpus)
    cluster.refuses = refuses
    cluster.apply(spec(image, **changes))
    cluster.run(seconds)
    return cluster


def _lost() -> SmallCluster:
    cluster = _serving()
    cluster.gpus, cluster.pods[0].placed = 1, None
    cluster.run(3)
    return cluster


def _without_metrics() -> SmallCluster:
    cluster = _edited(5, spec__autoscaling={"mode": "HPA", "max": 3})
    inactive = {"type": "ScalingActive", "status": "False", "reason": "FailedGetPodsMetric", "message": "no metrics"}
    cluster.put({**cluster.objects["HorizontalPodAutoscaler", KEY.name], "status": {"conditions": [inactive]}})
    cluster.run(5)
    return cluster


def _upgraded() -> SmallCluster:
    cluster = SmallCluster()
    cluster.apply(spec(""))
    cluster.run(20)
    cluster.start_operator("good:newer")
    cluster.run(20)
    return cluster


def _taken() -> SmallCluster:
    cluster = SmallCluster()
    labels = {"quire.dev/llmdeployment": KEY.name}
    metadata = {"name": KEY.name, "namespace": KEY.namespace, "labels": labels}
    cluster.put({"kind": "Service", "metadata": metadata, "spec": {}})
    cluster.apply(spec())
    cluster.run(5)
    return cluster


def _asking(refusal: str = "", **end: Any) -> SmallCluster:
    """`end`: of the container that asks."""
    cluster = SmallCluster()
    cluster.apply(spec(spec__model={"source": {"uri": "hf://acme/model"}}, spec__podTemplate=MEMORY))
    cluster.run(2)
    name = next(name for kind, name in cluster.objects if kind == "Job")
    if end:
        state = {"terminated": {"finishedAt": "2026-01-01T00:00:02Z", "reason": "Error", **end}}
        labels = {"quire.dev/llmdeployment": KEY.name, "quire.dev/role": "resolve"}
        metadata = {"name": "asks", "namespace": KEY.namespace, "labels": labels, "ownerReferences": [{"name": name}]}
        status = {"containerStatuses": [{"name": "weights", "state": state}]}
        cluster.put({"kind": "Pod", "metadata": metadata, "status": status})
    cluster.backend.asked = Asked(refusal=lambda uid: refusal)
    cluster.due = cluster.now
    cluster.run(3)
    return cluster
