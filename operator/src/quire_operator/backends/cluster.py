"""Kubernetes: server-side apply, three field managers, and what we see of pods.

    quire         owns the objects' desired state, but never `replicas`
    quire-scale   owns `replicas`: it creates what engines come from at 0, then sets /scale
    quire-status  owns the status of the resource

A manager that applied `replicas` once and then omits it would reset it to 1; hence the second one.
Watches fill the store; nothing is read from the API server but what a create runs into.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import ConflictError, DynamicApiError, NotFoundError
from pydantic import ValidationError

from quire_api.deployment import API_VERSION, KIND, LLMDeployment
from quire_api.errors import InvalidInput
from quire_api.status import DeploymentStatus
from quire_operator.backends.client import as_it_is
from quire_operator.backends.fetches import Fetching
from quire_operator.backends.jobs import podless, resolve_jobs
from quire_operator.backends.pods import (
    Asked,
    address_of,
    engines_of,
    failure_of,
    fetching,
    is_ready,
    pods_of_role,
    refusal_of,
    scaler_of,
)
from quire_operator.backends.refusals import PodlessJob
from quire_operator.backends.store import Object, Store
from quire_operator.planner.autoscale import ScaleDecision
from quire_operator.planner.observed import Instance, Key, ObjectState, Observed, Workload
from quire_operator.planner.plan import Action, Apply, Create, Delete, Desired, Scale, Weigh, digest
from quire_operator.planner.revisions import from_object, revision_id
from quire_operator.planner.workloads import GROUPS, WORKLOADS, is_workload, nodes_of, stub, template_of
from quire_operator.reconcile import NameTaken, Refused, ResourceKey
from quire_operator.render import kubernetes
from quire_operator.render.names import ENGINE, RESOLVER, WORKER
from quire_operator.scrape import Target
from quire_operator.settings import OperatorSettings

__all__ = ["OWNED", "ClusterBackend", "observe"]

MANAGER, SCALE_MANAGER, STATUS_MANAGER = "quire", "quire-scale", "quire-status"

OWNED: dict[str, str] = {  # kind -> apiVersion
    "ServiceAccount": "v1",
    "Service": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "Job": "batch/v1",
    "ControllerRevision": "apps/v1",
    "Deployment": "apps/v1",
    "LeaderWorkerSet": "leaderworkerset.x-k8s.io/v1",
}

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"  # the pod with the lowest goes first

TIMEOUT_S = 20.0  # of one request; the library's own is five minutes

Applied = dict[
    tuple[ResourceKey, Key], tuple[str, str]
]  # -> digest of the manifest, mark of the object that came of it


class ClusterBackend:
    def __init__(
        self,
        client: DynamicClient,
        store: Store,
        settings: OperatorSettings,
        corrected: Callable[[str], None] = lambda kind: None,
    ) -> None:
        """`corrected` is told the kind of each object that is put right after somebody else."""
        self._client = client
        self._store = store
        self._settings = settings
        self._corrected = corrected
        self._applied: Applied = {}
        self.decision: Callable[[ResourceKey], ScaleDecision | None] = lambda key: None  # of the autoscaler
        self.asked = Asked()

    def podless_jobs(self) -> list[PodlessJob]:
        """Of which it may be asked why."""
        store = self._store
        return [
            PodlessJob(uid, key)
            for key in store.resources()
            if (jobs := list(store.children(key, "Job")))
            for uid in podless(jobs, pods_of_role(store.children(key, "Pod"), RESOLVER))
        ]

    def fetching(self) -> list[Fetching]:
        """Pods that fetch weights, and may be asked how far they are."""
        store = self._store
        return [
            Fetching(pod["metadata"]["uid"], key, address_of(pod))
            for key in store.resources()
            for role in (ENGINE, WORKER)
            for pod in pods_of_role(store.children(key, "Pod"), role)
            if fetching(pod) and pod["status"].get("podIP")
        ]

    def scrape_targets(self) -> list[Target]:
        """What the autoscaler is to look at; what cannot be read is no business of its."""
        return [target for key in self._store.resources() if (target := _target(key, self._store)) is not None]

    def observe(self, key: ResourceKey) -> tuple[Object, Observed] | None:
        resource = self._store.resource(key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            self._applied = {k: v for k, v in self._applied.items() if k[0] != key}
            return None  # the garbage collector takes what we made
        seen = observe(key, resource, self._store, self._applied, self.asked)
        return resource, replace(seen, decision=self.decision(key))

    def render(self, deployment: LLMDeployment) -> Desired:
        return kubernetes.render(deployment, self._settings)

    async def execute(self, key: ResourceKey, action: Action) -> None:
        try:
            await self._execute(key, action)
        except DynamicApiError as error:
            raise Refused(f"{type(action).__name__.lower()} {' '.join(action.key)}: {error.summary()}") from None

    async def _execute(self, key: ResourceKey, action: Action) -> None:
        api = await self._client.resources.get(api_version=OWNED.get(action.key.kind, "v1"), kind=action.key.kind)
        match action:
            case Create(child, manifest):
                self._count_drift(key, child, manifest)
                if is_workload(manifest):
                    await self._create_at_zero(api, key, child, manifest)
                else:
                    await self._refuse_if_taken(api, key, child)
                await self._apply(api, key, child, manifest)
            case Apply(child, manifest):
                self._count_drift(key, child, manifest)
                await self._apply(api, key, child, manifest)
            case Weigh(child, cost):
                marked = {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
                try:
                    await api.patch(
                        body=marked,
                        name=child.name,
                        namespace=key.namespace,
                        field_manager=SCALE_MANAGER,
                        content_type="application/merge-patch+json",
                        _request_timeout=TIMEOUT_S,
                    )
                except NotFoundError:
                    pass  # gone by itself
            case Scale(child, replicas):
                before = self._store.child(key, child.kind, child.name)
                scale = {"spec": {"replicas": replicas}}
                await api.subresources["scale"].patch(
                    body=scale,
                    name=child.name,
                    namespace=key.namespace,
                    field_manager=SCALE_MANAGER,
                    content_type="application/merge-patch+json",
                    _request_timeout=TIMEOUT_S,
                )
                live = await api.get(
                    name=child.name, namespace=key.namespace, _request_timeout=TIMEOUT_S, serializer=as_it_is
                )
                self._store.put(live)  # the answer was the scale, and the watch may take a moment
                known = self._applied.get((key, child))
                if known is not None and before is not None and known[1] == _mark(before) and _is_next(before, live):
                    self._applied[key, child] = (known[0], _mark(live))  # nobody but us has changed it
            case Delete(child, uid):
                try:
                    body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}  # a Job's pods, too
                    await api.delete(name=child.name, namespace=key.namespace, body=body, _request_timeout=TIMEOUT_S)
                except (NotFoundError, ConflictError):
                    pass  # gone, or another one by now
                self._applied.pop((key, child), None)

    async def write_status(self, key: ResourceKey, status: DeploymentStatus) -> None:
        api = await self._client.resources.get(api_version=API_VERSION, kind=KIND)
        body = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": key.name, "namespace": key.namespace},
            "status": json.loads(status.model_dump_json(by_alias=True, exclude_none=True)),
        }
        try:
            answer = await api.status.server_side_apply(
                body=body,
                name=key.name,
                namespace=key.namespace,
                field_manager=STATUS_MANAGER,
                force_conflicts=True,
                _request_timeout=TIMEOUT_S,
                serializer=as_it_is,
            )
        except NotFoundError:  # deleted, and the watch has not told us, or never will
            if (resource := self._store.resource(key)) is not None:
                self._store.drop(resource)
            return
        self._store.put(answer)

    def _count_drift(self, key: ResourceKey, child: Key, manifest: Mapping[str, Any]) -> None:
        """The same manifest as last time: then it is the object that has changed. Jobs go by themselves."""
        known = self._applied.get((key, child))
        if known is not None and known[0] == digest(manifest) and child.kind != "Job":
            self._corrected(child.kind)

    async def _apply(self, api: Any, key: ResourceKey, child: Key, manifest: Mapping[str, Any]) -> None:
        live = await api.server_side_apply(
            body=dict(manifest),
            name=child.name,
            namespace=key.namespace,
            field_manager=MANAGER,
            force_conflicts=True,
            _request_timeout=TIMEOUT_S,
            serializer=as_it_is,
        )
        self._store.put(live)
        self._applied[key, child] = (digest(manifest), _mark(live))

    async def _create_at_zero(self, api: Any, key: ResourceKey, child: Key, manifest: Mapping[str, Any]) -> None:
        try:
            await api.create(
                body=stub(manifest), namespace=key.namespace, field_manager=SCALE_MANAGER, _request_timeout=TIMEOUT_S
            )
        except ConflictError:
            await self._refuse_if_taken(api, key, child)

    async def _refuse_if_taken(self, api: Any, key: ResourceKey, child: Key) -> None:
        """NameTaken unless there is no such object, or it is ours and the watch has not told us yet."""
        try:
            live = await api.get(
                name=child.name, namespace=key.namespace, _request_timeout=TIMEOUT_S, serializer=as_it_is
            )
        except NotFoundError:
            return
        resource = self._store.resource(key)
        controller = _controller(live)
        if resource is not None and controller.get("uid") == resource["metadata"]["uid"]:
            self._store.put(live)
            return
        raise NameTaken(child, f"{controller['kind']} {controller['name']}" if controller else "nobody that says so")


def observe(key: ResourceKey, resource: Object, store: Store, applied: Applied, asked: Asked) -> Observed:
    """The snapshot, from the store and what was asked beside it."""
    written, uid = resource.get("status"), resource["metadata"]["uid"]
    objects: dict[Key, ObjectState] = {}
    for kind in OWNED:
        for live in store.children(key, kind):
            child = Key(kind, live["metadata"]["name"])
            owner = _controller(live)
            known_digest, mark = applied.get((key, child), (None, ""))
            objects[child] = ObjectState(
                uid=live["metadata"]["uid"],
                owner_uid=owner.get("uid"),
                of_predecessor=(owner.get("kind"), owner.get("name")) == (KIND, key.name) and owner["uid"] != uid,
                applied=known_digest if mark == _mark(live) else None,
                replicas=(live.get("spec") or {}).get("replicas") if kind in WORKLOADS else None,
            )
    workload = _workload_of(key, store, uid)
    revision = revision_id(template_of(workload)) if workload is not None else None
    kept = (from_object(r) for r in store.children(key, "ControllerRevision") if _controller(r).get("uid") == uid)
    pods = list(store.children(key, "Pod"))
    engines = engines_of(pods, revision, asked)
    return Observed(
        status=_read_status(written) if written else None,
        objects=objects,
        workload=_progress(workload, store.children(key, "ReplicaSet"), engines)
        if workload is not None
        else Workload(),
        instances=engines,
        jobs=resolve_jobs(
            (job for job in store.children(key, "Job") if _controller(job).get("uid") == uid),
            pods_of_role(pods, RESOLVER),
            failure_of,
            asked.refusal,
        ),
        history=tuple(revision for revision in kept if revision is not None),
        scaler=next(
            (scaler_of(s) for s in store.children(key, "HorizontalPodAutoscaler") if _controller(s).get("uid") == uid),
            None,
        ),
    )


def _target(key: ResourceKey, store: Store) -> Target | None:
    """None unless the operator decides how many engines there are, and has said a first word."""
    resource = store.resource(key)
    if resource is None or not resource.get("status") or resource["metadata"].get("deletionTimestamp"):
        return None
    if (resource["spec"].get("autoscaling") or {}).get("mode") != "Builtin":  # of most, which need not be parsed
        return None
    try:
        deployment = LLMDeployment.parse(resource)
    except InvalidInput:
        return None
    workload = _workload_of(key, store, resource["metadata"]["uid"])
    if workload is None:
        return None
    pods = pods_of_role(store.children(key, "Pod"), ENGINE)
    return Target(
        key=key,
        deployment=deployment,
        status=_read_status(resource["status"]),
        replicas=workload["spec"].get("replicas", 0),
        ready={p["metadata"]["name"]: address_of(p) for p in pods if is_ready(p)},
    )


def _read_status(written: Mapping[str, Any]) -> DeploymentStatus:
    """What we wrote last; what somebody else made of it counts as empty, and is written anew."""
    try:
        return DeploymentStatus.model_validate_json(json.dumps(written))
    except ValidationError:
        return DeploymentStatus()


def _controller(live: Object) -> dict[str, Any]:
    owners = live["metadata"].get("ownerReferences") or []
    return next((dict(owner) for owner in owners if owner.get("controller")), {})


def _mark(live: Object) -> str:
    """Changes whenever somebody changes what we apply: the generation, where a kind has one, and the metadata we set.

    A HorizontalPodAutoscaler has none, and a status that changes all the time: its spec itself.
    """
    metadata = live["metadata"]
    by_spec = live["kind"] == "HorizontalPodAutoscaler"
    version = digest(live.get("spec")) if by_spec else metadata.get("generation") or metadata["resourceVersion"]
    return json.dumps(
        [metadata["uid"], version, metadata.get("labels"), metadata.get("ownerReferences")], sort_keys=True
    )


def _is_next(before: Object, live: Object) -> bool:
    """One edit of the spec apart, at the most."""
    generations = [obj["metadata"].get("generation", 0) for obj in (before, live)]
    return generations[1] - generations[0] in (0, 1)


def _workload_of(key: ResourceKey, store: Store, uid: str) -> Object | None:
    """What the engines of the resource come from."""
    found = (each for kind in WORKLOADS for each in store.children(key, kind))
    return next((each for each in found if _controller(each).get("uid") == uid), None)


def _progress(workload: Object, replica_sets: Iterable[Object], engines: Sequence[Instance]) -> Workload:
    if workload["kind"] == GROUPS:
        return _progress_of_groups(workload, engines)
    return _progress_of_pods(workload, replica_sets)


def _progress_of_groups(workload: Object, engines: Sequence[Instance]) -> Workload:
    """Counted from leaders: its status does not say which generation it is about."""
    rollout = (workload["spec"].get("rolloutStrategy") or {}).get("rollingUpdateConfiguration") or {}
    missing = rollout.get("maxUnavailable")
    return Workload(
        current=True,
        replicas=len(engines),
        updated=sum(engine.current for engine in engines),
        ready=sum(engine.ready for engine in engines),
        updated_ready=sum(engine.ready and engine.current for engine in engines),
        revision=revision_id(template_of(workload)),
        unavailable=missing if isinstance(missing, int) else 0,
        nodes=nodes_of(workload),
    )


def _progress_of_pods(deployment: Object, replica_sets: Iterable[Object]) -> Workload:
    spec, status = deployment["spec"], deployment.get("status") or {}
    missing = ((spec.get("strategy") or {}).get("rollingUpdate") or {}).get("maxUnavailable")
    replicas, updated = status.get("replicas", 0), status.get("updatedReplicas", 0)
    ready, revision = status.get("availableReplicas", 0), revision_id(spec.get("template") or {})
    uid = deployment["metadata"]["uid"]
    return Workload(
        current=status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0),
        replicas=replicas,
        updated=updated,
        ready=ready,
        updated_ready=max(
            0, min(updated, ready - (replicas - updated))
        ),  # at least so many: the others may all be old ones
        revision=revision,
        nodes=1,
        unavailable=missing if isinstance(missing, int) else 0,
        paused=bool(spec.get("paused")),
        refused=refusal_of(revision, (each for each in replica_sets if _controller(each).get("uid") == uid)),
    )
