"""kopf, as an informer and nothing more: it watches, retries and logs in; we plan.

Only `on.event` is used. Creation, update and deletion handlers, timers and daemons would add finalizers, which block
deletion once the operator is gone, or keep state in annotations. All that knows kopf stands in this file. That nothing is
planned before every kind was listed is listing.py's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import kopf
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import ResourceNotFoundError

from quire_api.deployment import GROUP, KIND, PLURAL, VERSION
from quire_api.errors import InvalidInput
from quire_operator.backends.store import Store
from quire_operator.listing import Kind
from quire_operator.planner.workloads import GROUPS
from quire_operator.render.names import OURS
from quire_operator.worker import Worker

__all__ = ["OPTIONAL", "WATCHED", "inform", "served_kinds"]

WATCHED: tuple[Kind, ...] = (
    (GROUP, VERSION, PLURAL, KIND),
    ("apps", "v1", "deployments", "Deployment"),
    ("apps", "v1", "replicasets", "ReplicaSet"),
    ("apps", "v1", "controllerrevisions", "ControllerRevision"),
    ("", "v1", "services", "Service"),
    ("", "v1", "serviceaccounts", "ServiceAccount"),
    ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy"),
    ("batch", "v1", "jobs", "Job"),
    ("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget"),
    ("autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler"),
    ("", "v1", "pods", "Pod"),
)

OPTIONAL: tuple[Kind, ...] = (
    ("leaderworkerset.x-k8s.io", "v1", "leaderworkersets", GROUPS),
)  # watched where they are installed


async def inform(store: Store, worker: Worker, kinds: Sequence[Kind], namespaces: list[str]) -> None:
    """Keep the store as the cluster is, and wake the worker, until cancelled."""
    await kopf.operator(
        registry=_registry(store, worker, kinds),
        settings=_settings(kinds),
        identity="quire",  # else it asks for a user name, which a bare uid has not
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
    )


async def served_kinds(dynamic: DynamicClient) -> tuple[Kind, ...]:
    """kopf looks for its kinds once, and would be deaf for ever to one that comes later: without one of ours end, and be restarted."""
    for kind in WATCHED:
        if not await _is_served(dynamic, kind):
            group, version, _, name = kind
            raise InvalidInput([f"the cluster does not serve {name} ({group}/{version}): is the CRD installed?"])
    return (*WATCHED, *[kind for kind in OPTIONAL if await _is_served(dynamic, kind)])


async def _is_served(dynamic: DynamicClient, kind: Kind) -> bool:
    group, version, _, name = kind
    try:
        await dynamic.resources.get(api_version=f"{group}/{version}".lstrip("/"), kind=name)
    except ResourceNotFoundError:
        return False
    return True


def _registry(store: Store, worker: Worker, kinds: Sequence[Kind]) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()
    kopf.on.login(id="login", errors=kopf.ErrorsMode.PERMANENT, registry=registry)(kopf.login_via_client)
    for group, version, plural, _ in kinds:

        async def event(event: Mapping[str, Any], **_: object) -> None:
            obj = dict(event["object"].items())  # kopf's view of it, as it came in
            for key in store.drop(obj) if event["type"] == "DELETED" else store.put(obj):
                worker.wake(key)

        kopf.on.event(group, version, plural, id=f"event-{plural}", registry=registry)(event)
    return registry


class _NoDiffs(kopf.DiffBaseStorage):  # type: ignore[misc]  # the library has no types
    """kopf would copy each object with each event, for handlers that we have not."""

    def build(self, **_: object) -> Any:
        return {}

    def fetch(self, **_: object) -> Any:
        return None

    def store(self, **_: object) -> None:
        return None


def _settings(kinds: Sequence[Kind]) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.watching.chunk_size = 500
    settings.scanning.disabled = True  # the CRD comes with the chart, before us
    settings.execution.max_workers = 1
    settings.persistence.diffbase_storage = _NoDiffs()
    # The default one is shared by all kopf operators: kopf takes it off objects which others still need it on.
    settings.persistence.finalizer = f"{GROUP}/unused"
    for group, _, plural, _ in kinds[1:]:
        settings.watching.label_selectors[(group, plural)] = OURS
    return settings
