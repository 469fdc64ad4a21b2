"""A cluster that a test can hold: an API server, the Deployment controller, a scheduler with so many GPUs, a kubelet. No clock but ours.

What an image does stands in its name: `good:1` serves after 5 s, `bad:1` ends again and again, `never:1` is never ready,
of `half:1` every other pod is, `denied:1` cannot be pulled. The operator is the real one, from `ClusterBackend` to the store; it is called when something has
changed and when it asked for it, at no other time.
"""

import copy
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from kubernetes.aio.dynamic.exceptions import ConflictError, ForbiddenError, NotFoundError

from quire_operator.backends.cluster import ClusterBackend
from quire_operator.backends.store import Store
from quire_operator.reconcile import Refused, ResourceKey, reconcile
from quire_operator.settings import OperatorSettings

__all__ = ["KEY", "Killed", "SmallCluster"]

KEY = ResourceKey("default", "good")
ENDS_S, DRAINS_S = 3, 2
REVISION = "quire.dev/revision"
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."

Object = dict[str, Any]


class Killed(BaseException):
    """The operator ends in the middle of what it does."""


@dataclass
class Pod:
    name: str
    revision: str
    image: str
    fetches_s: int
    takes_s: int  # until it serves
    placed: int | None = None
    without_a_place: int | None = None  # since when
    ends: int | None = None  # when it was told to

    def changes(self) -> list[int]:
        """When it may look different."""
        begun = [self.placed + s for s in (ENDS_S, self.fetches_s, self.takes_s)] if self.placed is not None else []
        return begun if self.ends is None else [*begun, self.ends + DRAINS_S]

    def ready(self, now: int) -> bool:
        works = self.image.startswith("good") or (self.image.startswith("half") and int(self.name[-1]) % 2)
        return bool(works) and self.placed is not None and now - self.placed >= self.takes_s


@dataclass
class SmallCluster:
    gpus: int = 8
    quota: int = 1 << 20  # pods that the namespace may have
    fetches_s: int = 0  # for its weights, each pod that is made from now on
    loads_s: int = 5  # and then until it serves
    refuses: str = ""  # a kind that the API server does not let be applied
    kill_at: int | None = None  # the write before which the operator is killed
    now: int = 0
    writes: int = 0
    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    rolled: list[str] = field(default_factory=list)  # images of the templates that were applied, one after the other
    available: list[bool] = field(default_factory=list)  # at each second
    corrected: list[str] = field(default_factory=list)  # kinds of what the operator counted as put right
    version: int = 0
    born: int = 0  # pods
    over_quota: bool = False

    def __post_init__(self) -> None:
        self.start_operator()

    # the operator

    def start_operator(self, engine_image: str = "good:default") -> None:
        """A new one, which knows nothing but what the API server lists."""
        self.store, self.engine_image = Store(), engine_image
        for obj in self.objects.values():
            self.store.put(copy.deepcopy(obj))
        settings = OperatorSettings(engine_image=engine_image)
        client = SimpleNamespace(resources=SimpleNamespace(get=self._api))
        self.backend = ClusterBackend(client, self.store, settings, self.corrected.append)
        self.due: float = self.now
        self.seen = -1

    def run(self, seconds: int) -> None:
        """Second by second while something happens, else to where something will."""
        end = self.now + seconds
        while self.now < end:
            before = self.version
            self._control()
            if self.version != self.seen or self.now >= self.due:
                self._reconcile()
            self.available.append(any(pod.ready(self.now) for pod in self._active()))
            events = [int(self.due + 1), *(t for p in self.pods for t in p.changes() if t > self.now)]
            self.now = min([end, *events]) if self.version == before else self.now + 1

    def _reconcile(self) -> None:
        for _ in range(10):
            try:
                again = finish(reconcile(KEY, self.backend, self.time))
            except Killed:
                self.start_operator(self.engine_image)
                continue
            except Refused:
                self.due, self.seen = self.now + 30, self.version  # the worker's backoff
                return
            self.due = self.now + (600 if again is None else again)
            self.seen = self.version
            if again != 0:  # what it wrote itself wakes it no more than that: it has to ask
                return
        raise AssertionError("the operator does not come to rest")

    def time(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    # the user

    def apply(self, resource: Object) -> None:
        before = self.objects.get(("LLMDeployment", KEY.name), {"metadata": {"generation": 0}})
        resource = copy.deepcopy(resource)
        changed = before.get("spec") != resource["spec"]
        resource["metadata"] |= {"uid": "u", "generation": before["metadata"]["generation"] + changed}
        if "status" in before:
            resource["status"] = before["status"]
        self._put(resource)

    @property
    def status(self) -> Object:
        status: Object = self.objects["LLMDeployment", KEY.name]["status"]
        return status

    def said(self, condition: str) -> str:
        """`True/Serving`; empty when there is no such condition."""
        found = (f"{c['status']}/{c['reason']}" for c in self.status["conditions"] if c["type"] == condition)
        return next(found, "")

    def message(self, condition: str) -> str:
        return next(c["message"] for c in self.status["conditions"] if c["type"] == condition)

    def serving(self) -> list[str]:
        """Images of the engines that serve."""
        return sorted(pod.image for pod in self._active() if pod.ready(self.now))

    # the API server, as far as the operator uses it

    async def _api(self, *, kind: str, api_version: str) -> "Api":
        return Api(self, kind)

    def write(self) -> None:
        self.writes += 1
        if self.writes == self.kill_at:
            raise Killed

    def put(self, obj: Object) -> Object:
        key = (obj["kind"], obj["metadata"]["name"])
        before = self.objects.get(key)
        generation = before["metadata"]["generation"] if before else 0
        changed = before is None or before.get("spec") != obj.get("spec")
        uid = before["metadata"]["uid"] if before else f"{obj['kind']}-{key[1]}-{self.version}"
        obj["metadata"] |= {"uid": uid, "generation": generation + changed}
        if obj["kind"] == "ControllerRevision":
            assert before is None or before["data"] == obj["data"], "data of a ControllerRevision is immutable"
        return self._put(obj)

    def _put(self, obj: Object) -> Object:
        key = (obj["kind"], obj["metadata"]["name"])
        before = self.objects.get(key)
        if before is not None and _without_version(before) == _without_version(obj):
            return copy.deepcopy(before)
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = obj
        self.store.put(copy.deepcopy(obj))
        return copy.deepcopy(obj)

    def remove(self, kind: str, name: str) -> None:
        self.version += 1
        obj = self.objects.pop((kind, name))
        self.store.drop(obj)

    # the controllers

    def _active(self) -> list[Pod]:
        return [pod for pod in self.pods if pod.ends is None]

    def _control(self) -> None:
        deployment = self.objects.get(("Deployment", KEY.name))
        if deployment is None:
            return
        spec = deployment["spec"]
        if not spec.get("paused"):
            self._scale(spec)
        self._place_and_end()
        active, template = self._active(), spec["template"]
        current = [p for p in active if p.revision == template["metadata"]["labels"].get(REVISION)]
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(active),
            "updatedReplicas": len(current),
            "availableReplicas": sum(p.ready(self.now) for p in active),
        }
        if deployment.get("status") != status:
            self._put({**copy.deepcopy(deployment), "status": status})
        self._put(self._replica_set(deployment))
        for pod in self.pods:
            self._put(self._as_object(pod))

    def _scale(self, spec: Object) -> None:
        """The arithmetic of the Deployment controller (pkg/controller/deployment/rolling.go)."""
        wanted, rolling = spec["replicas"], spec.get("strategy", {}).get("rollingUpdate", {"maxSurge": 1})
        revision = spec["template"]["metadata"]["labels"].get(REVISION, "")
        new = [p for p in self._active() if p.revision == revision]
        old = sorted((p for p in self._active() if p.revision != revision), key=lambda p: p.ready(self.now))
        room = wanted + (rolling["maxSurge"] if old else 0) - len(new) - len(old)
        image = spec["template"]["spec"]["containers"][0]["image"]
        self.over_quota = False
        for _ in range(min(wanted - len(new), room)):
            if len(self.pods) >= self.quota:
                self.over_quota = True
                break
            self.born += 1
            self.pods.append(Pod(f"pod-{self.born}", revision, image, self.fetches_s, self.fetches_s + self.loads_s))
        for pod in sorted(new, key=lambda p: p.ready(self.now))[: max(0, len(new) - wanted)]:
            pod.ends = self.now
        unready = sum(not p.ready(self.now) for p in self._active() if p.revision == revision)
        spare = len(self._active()) - (wanted - rolling.get("maxUnavailable", 0)) - unready
        serving = sum(p.ready(self.now) for p in self._active()) - (wanted - rolling.get("maxUnavailable", 0))
        for pod in old[: max(0, spare)]:
            serving -= pod.ready(self.now)
            if not pod.ready(self.now) or serving >= 0:
                pod.ends = self.now

    def _replica_set(self, deployment: Object) -> Object:
        """The newest one; nobody asks for the others."""
        failure = {"type": "ReplicaFailure", "status": "True", "message": "pods are forbidden: exceeded quota: gpus"}
        template = copy.deepcopy(deployment["spec"]["template"])
        name = f"{KEY.name}-{template['metadata']['labels'].get(REVISION, 'stub')}"
        owner = {"kind": "Deployment", "name": KEY.name, "uid": deployment["metadata"]["uid"], "controller": True}
        labels = {"quire.dev/llmdeployment": KEY.name, **template["metadata"]["labels"], "pod-template-hash": "5d4f8c"}
        metadata = {"name": name, "namespace": "default", "uid": name, "labels": labels, "ownerReferences": [owner]}
        conditions = {"conditions": [failure] if self.over_quota else []}
        return {"kind": "ReplicaSet", "metadata": metadata, "spec": {"template": template}, "status": conditions}

    def _place_and_end(self) -> None:
        for pod in [p for p in self.pods if p.ends is not None and self.now - p.ends >= DRAINS_S]:
            self.pods.remove(pod)
            if ("Pod", pod.name) in self.objects:
                self.remove("Pod", pod.name)
        for pod in self._active():
            if pod.placed is None and sum(p.placed is not None for p in self.pods) < self.gpus:
                pod.placed = self.now
            elif pod.placed is None:
                pod.without_a_place = pod.without_a_place or self.now

    def _as_object(self, pod: Pod) -> Object:
        ready, ended = pod.ready(self.now), pod.placed is not None and self.now - pod.placed >= ENDS_S
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        if pod.placed is None and pod.without_a_place is not None:
            since = (self.time() - timedelta(seconds=self.now - pod.without_a_place)).strftime("%Y-%m-%dT%H:%M:%SZ")
            conditions.append({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU, "lastTransitionTime": since})  # fmt: skip
        state: Object = {"state": {"running": {}}}
        if pod.image.startswith("denied"):
            state = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
        if pod.image.startswith("bad") and ended:
            state = {
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 1, "message": "boom", "reason": "Error"}},
            }
        labels = {"quire.dev/llmdeployment": KEY.name, "quire.dev/role": "engine", REVISION: pod.revision}
        metadata = {"name": pod.name, "namespace": "default", "uid": pod.name, "labels": labels}
        if pod.ends is not None:
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        statuses = [{"name": "engine", **state}] if pod.placed is not None else []
        status = {"conditions": conditions, "initContainerStatuses": self._fetch(pod), "containerStatuses": statuses}
        return {"kind": "Pod", "metadata": metadata, "status": status}

    def _fetch(self, pod: Pod) -> list[Object]:
        if pod.placed is None or not pod.fetches_s:
            return []
        left = pod.placed + pod.fetches_s - self.now
        ended = {"exitCode": 0, "finishedAt": (self.time() + timedelta(seconds=left)).strftime("%Y-%m-%dT%H:%M:%SZ")}
        return [{"name": "weights", "state": {"running": {}} if left > 0 else {"terminated": ended}}]


@dataclass
class Api:
    """Of one kind."""

    cluster: SmallCluster
    kind: str

    @property
    def subresources(self) -> dict[str, Any]:
        return {"scale": SimpleNamespace(patch=self._patch_scale)}

    @property
    def status(self) -> Any:
        return SimpleNamespace(server_side_apply=self._apply_status)

    async def get(self, *, name: str, **_: Any) -> Any:
        if (self.kind, name) not in self.cluster.objects:
            raise NotFoundError(_answer(404))
        return _result(self.cluster.objects[self.kind, name])

    async def create(self, *, body: Object, **_: Any) -> Any:
        self.cluster.write()
        if (self.kind, body["metadata"]["name"]) in self.cluster.objects:
            raise ConflictError(_answer(409))
        return _result(self.cluster.put(copy.deepcopy(body)))

    async def server_side_apply(self, *, body: Object, name: str, **_: Any) -> Any:
        """The manager's fields are what it applies now; `replicas` and the status belong to others."""
        self.cluster.write()
        if self.kind == self.cluster.refuses:
            raise ForbiddenError(_answer(403))
        before = self.cluster.objects.get((self.kind, name), {})
        obj = copy.deepcopy(body)
        if self.kind == "Deployment":
            obj["spec"]["replicas"] = before["spec"]["replicas"]
            image = obj["spec"]["template"]["spec"]["containers"][0]["image"]
            if self.cluster.rolled[-1:] != [image]:
                self.cluster.rolled.append(image)
        if "status" in before:
            obj["status"] = copy.deepcopy(before["status"])
        return _result(self.cluster.put(obj))

    async def delete(self, *, name: str, **_: Any) -> None:
        self.cluster.write()
        self.cluster.remove(self.kind, name)

    async def _patch_scale(self, *, body: Object, name: str, **_: Any) -> None:
        self.cluster.write()
        obj = copy.deepcopy(self.cluster.objects[self.kind, name])
        obj["spec"]["replicas"] = body["spec"]["replicas"]
        self.cluster.put(obj)

    async def _apply_status(self, *, body: Object, name: str, **_: Any) -> Any:
        self.cluster.write()
        obj = copy.deepcopy(self.cluster.objects[self.kind, name])
        return _result(self.cluster._put({**obj, "status": copy.deepcopy(body["status"])}))


def _result(obj: Object) -> Any:
    return copy.deepcopy(obj)


def _answer(status: int) -> Any:
    return SimpleNamespace(status=status, reason="", body="", headers={})


def _without_version(obj: Object) -> Object:
    return {**obj, "metadata": {k: v for k, v in obj["metadata"].items() if k != "resourceVersion"}}


def finish(work: Coroutine[Any, Any, Any]) -> Any:
    """Run what waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits for something")
