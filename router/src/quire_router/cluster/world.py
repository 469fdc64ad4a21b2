"""`quire router --kubernetes`: keeps the router's registry as the resources and EndpointSlices of a cluster say."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from kubernetes.aio import config
from kubernetes.aio.client import ApiClient
from pydantic import ValidationError

from quire_api.deployment import GROUP, PLURAL, VERSION, LLMDeployment
from quire_api.errors import InvalidInput
from quire_api.status import DeploymentStatus
from quire_router.cluster.informer import Informer, Kind
from quire_router.cluster.picture import draw
from quire_router.declared import declared
from quire_router.registry import Model, Registry

__all__ = ["ClusterWorld", "api_client"]

log = logging.getLogger("quire.router")

RESOURCES = Kind(group=GROUP, version=VERSION, plural=PLURAL)
SLICES = Kind(  # a slice has the labels of its Service
    group="discovery.k8s.io", version="v1", plural="endpointslices", selector=f"{GROUP}/llmdeployment"
)
GATHER_S = 0.05  # events come in swarms, one for each pod of a rollout


@contextlib.asynccontextmanager
async def api_client() -> AsyncIterator[ApiClient]:
    """As the pod's service account, or as the user's kubeconfig says. InvalidInput when there is neither."""
    try:
        try:
            config.load_incluster_config()
        except config.ConfigException:
            await config.load_kube_config()
    except config.ConfigException as error:
        raise InvalidInput([f"--kubernetes: no cluster to ask: {error}"]) from None
    async with ApiClient() as api:
        yield api


class ClusterWorld:
    """`publish` takes the registry whenever it may have changed; never before all was listed once."""

    def __init__(self, api: ApiClient, namespaces: list[str], publish: Callable[[Registry], None]) -> None:
        self._clock = asyncio.get_running_loop().time
        self._publish = publish
        self._news = asyncio.Event()
        scopes: list[str | None] = [*namespaces] or [None]
        self._resources = [Informer(api, RESOURCES, scope, self._news.set, self._clock) for scope in scopes]
        self._slices = [Informer(api, SLICES, scope, self._news.set, self._clock) for scope in scopes]
        self._known: dict[str, tuple[str, Model]] = {}  # uid -> version, and what it declared
        self._shadowed: tuple[str, ...] = ()
        self._told = False

    def missing(self) -> str | None:
        return None if self._told else "the resources of the cluster are not listed yet"

    def silent_s(self) -> float:
        since = [informer.silent_since for informer in self._informers if informer.silent_since is not None]
        return self._clock() - min(since) if since else 0.0

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            for informer in self._informers:
                tasks.create_task(informer.run())
            while True:
                await self._news.wait()
                await asyncio.sleep(GATHER_S)
                self._news.clear()
                if all(informer.listed for informer in self._informers):
                    self._tell()

    @property
    def _informers(self) -> list[Informer]:
        return self._resources + self._slices

    def _tell(self) -> None:
        resources = [each for informer in self._resources for each in informer.objects.values()]
        slices = [each for informer in self._slices for each in informer.objects.values()]
        resources.sort(key=_age)
        models = [model for each in resources if (model := self._declared(each)) is not None]
        picture = draw(models, slices)
        if picture.shadowed != self._shadowed:
            self._shadowed = picture.shadowed
            for sentence in picture.shadowed:
                log.warning("%s", sentence)
        kept = {each["metadata"]["uid"] for each in resources}
        self._known = {uid: known for uid, known in self._known.items() if uid in kept}
        self._publish(picture.registry)
        self._told = True

    def _declared(self, resource: Any) -> Model | None:
        """What it declares; of one that cannot be read, what it declared before, for its engines go on serving."""
        uid, version = resource["metadata"]["uid"], resource["metadata"]["resourceVersion"]
        before = self._known.get(uid)
        if before is not None and before[0] == version:
            return before[1]
        try:
            model = declared(LLMDeployment.parse(resource), _status(resource))
        except InvalidInput as error:
            name = f"{resource['metadata']['namespace']}/{resource['metadata']['name']}"
            log.warning("%s: cannot be read, what it said before stays: %s", name, error)
            return before[1] if before is not None else None
        self._known[uid] = (version, model)
        return model


def _age(resource: Any) -> tuple[str, str, str]:
    metadata = resource["metadata"]
    return metadata.get("creationTimestamp") or "", metadata["namespace"], metadata["name"]


def _status(resource: Any) -> DeploymentStatus | None:
    try:
        return DeploymentStatus.model_validate(resource.get("status") or {})
    except ValidationError:
        return None  # not the operator's writing
