"""How a pod gets its weights: a container that fetches before the engine starts, or a volume that has them.

    fetched     /weights is the store, the pod's own or a claim that many share; /run/quire/model links to the model
    pvc://      the claim at /pvc/CLAIM, where the engine looks
    else        nothing: the image or the node has them

Only the container that fetches gets the secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_api.deployment import LLMDeployment
from quire_operator.render.objects import Manifest

__all__ = ["WeightsPlan", "plan_weights"]

STORE, LINKS = "/weights", "/run/quire"
MODEL = f"{LINKS}/model"


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
        command=["quire", "fetch", source.uri, STORE, f"--link={MODEL}"],
        env_from=[{"secretRef": {"name": source.secret_ref.name}}] if source.secret_ref else [],
        environment={"HF_HUB_OFFLINE": "1"},
        volumes=[{"name": "weights", **store}, {"name": "model", "emptyDir": {}}],
        mounts=[{"name": "weights", "mountPath": STORE}, {"name": "model", "mountPath": LINKS}],
    )
