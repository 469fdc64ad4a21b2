"""The object that engines come from, whatever its kind. Pure.

    Deployment         an engine is a pod
    LeaderWorkerSet    an engine is a group of pods on several nodes: a leader, which is asked, and workers

Rule: there is one template of an engine, its leader's, and all that is kept, compared and rolled back is that one. Workers are
made of it by `worker_of`, so that a group is never of two revisions.
"""

from collections.abc import Mapping
from typing import Any

from quire_operator.planner.observed import Manifest
from quire_operator.render.names import NODES_LABEL, ROLE_LABEL, WORKER

__all__ = [
    "GROUPS",
    "WORKLOADS",
    "is_workload",
    "least_unavailable",
    "nodes_of",
    "rolled",
    "strategy",
    "stub",
    "template_of",
    "worker_of",
]

GROUPS = "LeaderWorkerSet"
WORKLOADS = ("Deployment", GROUPS)

OF_A_SERVER = ("ports", "startupProbe", "readinessProbe", "livenessProbe")  # parts of a container that answers requests


def is_workload(manifest: Mapping[str, Any]) -> bool:
    return manifest["kind"] in WORKLOADS


def strategy(unavailable: int) -> dict[str, Any]:
    """Of a Deployment: so many engines may be missing meanwhile; 0: a new one comes before an old one goes."""
    return {"type": "RollingUpdate", "rollingUpdate": _bounds(unavailable)}


def template_of(workload: Mapping[str, Any]) -> Manifest:
    """Of an engine's pod, or of the leader of its pods; empty where there is none yet."""
    spec = workload.get("spec") or {}
    template: Manifest | None = (
        (spec.get("leaderWorkerTemplate") or {}).get("leaderTemplate")
        if workload["kind"] == GROUPS
        else spec.get("template")
    )
    return template or {}


def nodes_of(workload: Mapping[str, Any]) -> int:
    """That each of its engines was made for: a size that somebody has edited since is to be put right, and is no wish of the resource."""
    if workload["kind"] != GROUPS:
        return 1
    written = (workload["metadata"].get("labels") or {}).get(NODES_LABEL, "")
    return int(written) if written.isdecimal() else _size_of(workload)


def _size_of(workload: Mapping[str, Any]) -> int:
    return int(((workload.get("spec") or {}).get("leaderWorkerTemplate") or {}).get("size", 1))


def rolled(workload: Manifest, template: Manifest, unavailable: int) -> Manifest:
    """`workload` with engines of `template`, of which so many may be missing while it is rolled out."""
    spec = workload["spec"]
    if workload["kind"] != GROUPS:
        return {**workload, "spec": {**spec, "strategy": strategy(unavailable), "template": template}}
    pods = {**spec["leaderWorkerTemplate"], "leaderTemplate": template, "workerTemplate": worker_of(template)}
    rollout = {"type": "RollingUpdate", "rollingUpdateConfiguration": _bounds(unavailable)}
    return {**workload, "spec": {**spec, "rolloutStrategy": rollout, "leaderWorkerTemplate": pods}}


def least_unavailable(workload: Mapping[str, Any], replicas: int) -> int:
    """Engines that have to be missing while it is rolled out. One group alone is never replaced once another came first: its
    controller keeps that one until the old one is new, and the old one until that one is gone."""
    return 1 if workload["kind"] == GROUPS and replicas <= 1 else 0


def worker_of(template: Manifest) -> Manifest:
    """The same engine without what serves: nobody asks a worker, and no Service or budget counts it."""
    metadata, spec = template["metadata"], template["spec"]
    containers = [
        {part: value for part, value in container.items() if part not in OF_A_SERVER}
        if container["name"] == "engine"
        else container
        for container in spec["containers"]
    ]
    rest = {part: value for part, value in spec.items() if part != "topologySpreadConstraints"}  # it is of leaders
    return {
        **template,
        "metadata": {**metadata, "labels": {**metadata["labels"], ROLE_LABEL: WORKER}},
        "spec": {**rest, "containers": containers},
    }


def stub(workload: Manifest) -> Manifest:
    """What validation demands and no more, without an engine: whoever posts it co-owns it for ever."""
    pod = {"spec": {"containers": [_named(template_of(workload))]}}
    if workload["kind"] == GROUPS:
        pods = {"size": _size_of(workload), "workerTemplate": pod}
        spec: Mapping[str, Any] = {"replicas": 0, "leaderWorkerTemplate": pods}
    else:
        selector = workload["spec"]["selector"]
        spec = {
            "replicas": 0,
            "selector": selector,
            "template": {"metadata": {"labels": selector["matchLabels"]}, **pod},
        }
    return {**{part: workload[part] for part in ("apiVersion", "kind", "metadata")}, "spec": spec}


def _named(template: Manifest) -> Manifest:
    container = template["spec"]["containers"][0]
    return {"name": container["name"], "image": container["image"]}


def _bounds(unavailable: int) -> dict[str, int]:
    return {"maxSurge": 0 if unavailable else 1, "maxUnavailable": unavailable}
