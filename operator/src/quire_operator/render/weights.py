"""How a pod gets its weights: a container that fetches before the engine starts, or a volume that has them.

    fetched     /weights is the store, the pod's own or a claim that many share; /run/quire/model links to the model
    pvc://      the claim at /pvc/CLAIM, where the engine looks
    else        nothing: the image or the node has them

Only the container that fetches gets the secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_api.deployment import LLMDeployment, Source
from quire_operator.render.objects import Manifest

__all__ = ["WeightsPlan", "choice_of", "pinned", "plan_weights", "secret_of"]

STORE, LINKS = "/weights", "/run/quire"
MODEL = f"{LINKS}/model"


class PinnedSource(Source):
    """A source of which one revision is wanted, whatever it may be elsewhere by now."""

    revision: str


def pinned(deployment: LLMDeployment, revision: str) -> LLMDeployment:
    """The resource with its source at a revision that was found there."""
    model = deployment.spec.model
    source = PinnedSource.model_construct(**dict(model.source), revision=revision)
    spec = deployment.spec.model_copy(update={"model": model.model_copy(update={"source": source})})
    return deployment.model_copy(update={"spec": spec})


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPlan:
    model: str  # for the engine's command line
    command: list[str] | None = None  # of the container that fetches
    env_from: list[Manifest] = field(default_factory=list)  # of the same
    environment: Mapping[str, str] = field(default_factory=dict)  # of the engine
    volumes: list[Manifest] = field(default_factory=list)
    mounts: list[Manifest] = field(default_factory=list)  # of both


def plan_weights(deployment: LLMDeployment) -> WeightsPlan:
    source = deployment.spec.model.source
    if source.uri.startswith("pvc://"):
        claim = source.uri.removeprefix("pvc://").partition("/")[0]
        return WeightsPlan(
            model=source.uri,
            volumes=[{"name": "weights", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}],
            mounts=[{"name": "weights", "mountPath": f"/pvc/{claim}", "readOnly": True}],
        )
    if not source.is_fetched:
        return WeightsPlan(model=source.uri)
    cache = deployment.spec.weights.cache
    store = {"emptyDir": {}} if cache is None else {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    return WeightsPlan(
        model=MODEL,
        command=["quire", "fetch", *_at_revision(source), STORE, f"--link={MODEL}", *choice_of(source)],
        env_from=secret_of(source),
        environment={"HF_HUB_OFFLINE": "1"},
        volumes=[{"name": "weights", **store}, {"name": "model", "emptyDir": {}}],
        mounts=[{"name": "weights", "mountPath": STORE}, {"name": "model", "mountPath": LINKS}],
    )


def secret_of(source: Source) -> list[Manifest]:
    """For the environment of a container that asks or fetches."""
    return [{"secretRef": {"name": source.secret_ref.name}}] if source.secret_ref else []


def choice_of(source: Source) -> list[str]:
    """Flags of `quire fetch`."""
    return [f"--include={pattern}" for pattern in source.include]


def _at_revision(source: Source) -> list[str]:
    """A hub gives any revision; of other sources there is only the one of now, which must then be the wanted one."""
    if not isinstance(source, PinnedSource):
        return [source.uri]
    if source.uri.startswith("hf://"):
        return [f"{source.uri.partition('@')[0]}@{source.revision}"]
    return [source.uri, f"--revision={source.revision}"]
