"""The LLMDeployment resource: what a user writes. One resource is one served model.

The CRD, the reference page and `quire plan` all come from these classes. Every string, list and
number is bounded (else the API server refuses the cost of the rules), every field says its unit and
default, and a field stands here only when its feature works.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from quire_api.accelerator import Accelerator, Parallelism
from quire_api.autoscaling import Autoscaling
from quire_api.base import Duration, Rule, Strict, seconds
from quire_api.engine import EngineOptions
from quire_api.errors import InvalidInput, explain
from quire_api.placement import Disruption, Scheduling
from quire_api.rollout import Rollout

__all__ = [
    "API_VERSION",
    "GROUP",
    "KIND",
    "NAME_MAX",
    "PLURAL",
    "UPGRADE_ANNOTATION",
    "VERSION",
    "Accelerator",
    "Access",
    "Cache",
    "Drain",
    "Health",
    "LLMDeployment",
    "Metadata",
    "Model",
    "Routing",
    "SecretRef",
    "Source",
    "Spec",
    "WeightsOptions",
    "seconds",
]

GROUP = "quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "LLMDeployment"
PLURAL = "llmdeployments"
UPGRADE_ANNOTATION = f"{GROUP}/upgrade"  # the user's: "true" takes what a newer operator would render
GROUPS_NAME_MAX = 40  # NAME-nodes-0-HASH is a label of workers, with a hash of 10
NAME_MAX = 45  # what we append to it must still fit a DNS label of 63

ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$")]
Pattern = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^-].*$")]


class SecretRef(Strict):
    """A Secret in the resource's namespace."""

    name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]+([.-]+[a-z0-9]+)*$",
        description="Name of the Secret.",
        examples=["hf-token"],
    )


class Source(Strict):
    """Where the weights are."""

    uri: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^(builtin://[a-z0-9][a-z0-9.-]*|file:///.+|pvc://[a-z0-9][a-z0-9.-]*(/.*)?|"
        r"hf://[A-Za-z0-9].*|s3://[a-z0-9].*|https://[^/]+/.*manifest\.json)$",
        description="`hf://org/model@revision`, `s3://bucket/prefix` and `https://host/path/manifest.json` are fetched before the engine starts; "
        "`pvc://claim/path` is a folder on a volume; `builtin://quire-tiny` is the model that ships with the engine; "
        "`file:///path` is a folder inside the engine's pod or, in local mode, on this machine.",
        examples=["hf://Qwen/Qwen3-8B@9c925d64", "builtin://quire-tiny"],
    )
    secret_ref: SecretRef | None = Field(
        None,
        description="Its keys (`HF_TOKEN`, `HF_ENDPOINT`, `AWS_ACCESS_KEY_ID`, ...) become the environment of the Job that asks the source and of the container "
        "that fetches, and of nothing else. `quire up` takes them from its own environment. Default: none.",
    )
    include: tuple[Pattern, ...] = Field(
        (),
        max_length=32,
        description="Files to fetch, as patterns of the shell, in place of those chosen by rule; configuration and tokenizer come along. "
        "Default: the safetensors.",
        examples=[["model-fp16*.safetensors"]],
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.include) || size(self.include) == 0 || self.uri.matches('^(hf|s3|https)://')",
            message="include is for what is fetched: hf://, s3:// or https://",
            holds=lambda s: not s.include or s.is_fetched,
        ),
        Rule(
            cel="!has(self.secretRef) || self.uri.matches('^(hf|s3|https)://')",
            message="secretRef is for what is fetched: hf://, s3:// or https://",
            holds=lambda s: s.secret_ref is None or s.is_fetched,
        ),
    )

    @property
    def is_fetched(self) -> bool:
        return self.uri.startswith(("hf://", "s3://", "https://"))


class Model(Strict):
    """The model and the names clients know it by."""

    name: ModelName | None = Field(
        None,
        description="What clients send as `model`. Default: the name of the resource.",
        examples=["tinyllama-1.1b"],
    )
    aliases: tuple[ModelName, ...] = Field(
        (),
        max_length=16,
        description="More names for the same model. Default: none.",
        examples=[["chat-default"]],
    )
    source: Source = Field(description="Where the weights are.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.aliases) || !has(self.name) || !(self.name in self.aliases)",
            message="aliases must not repeat name: take it out of aliases",
            holds=lambda m: m.name is None or m.name not in m.aliases,
        ),
        Rule(
            cel="!has(self.aliases) || self.aliases.all(a, self.aliases.exists_one(b, a == b))",
            message="aliases must differ from each other: write each one once",
            holds=lambda m: len(set(m.aliases)) == len(m.aliases),
        ),
    )


class Cache(Strict):
    """Where fetched models stay."""

    claim_name: str = Field(
        min_length=1,
        max_length=253,
        pattern=r"^[a-z0-9]+([.-]+[a-z0-9]+)*$",
        description="A PersistentVolumeClaim in the resource's namespace; any number of pods and resources may share it, one fetches.",
        examples=["models"],
    )


class WeightsOptions(Strict):
    """What becomes of fetched weights."""

    cache: Cache | None = Field(
        None,
        description="Keep them on a volume; of no use to `quire up`, which has a folder of its own. Default: each pod fetches for itself.",
    )
    verify: Literal["Manifest", "Always"] = Field(
        "Manifest",
        description="What is compared at each start: `Manifest` that every file has its size, `Always` every hash too. Default: Manifest.",
        examples=["Always"],
    )


class Health(Strict):
    """How long the engine may take to show that it works."""

    startup_timeout: Duration = Field(
        "30m",
        description="How long a pod may take to load the model before it is started again; `quire up` waits for ever. "
        "A number and s, m or h; 10s to 24h. Default: 30m.",
        examples=["10m"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.startupTimeout) >= duration('10s')",
            message="startupTimeout must be at least 10s: an engine needs some time to load",
            holds=lambda h: seconds(h.startup_timeout) >= 10,
        ),
        Rule(
            cel="duration(self.startupTimeout) <= duration('24h')",
            message="startupTimeout must be at most 24h: a model that loads longer than a day is not going to",
            holds=lambda h: seconds(h.startup_timeout) <= 86400,
        ),
    )


class Drain(Strict):
    """How an engine ends."""

    timeout: Duration = Field(
        "300s",
        description="How long accepted requests may take to finish when a pod is told to stop; "
        "after that they are cut. A number and s, m or h; at most 1h. Default: 300s.",
        examples=["60s"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.timeout) <= duration('1h')",
            message="timeout must be at most 1h: node drains wait for it",
            holds=lambda d: seconds(d.timeout) <= 3600,
        ),
    )


class Access(Strict):
    """Who may use the model through the router."""

    groups: tuple[Annotated[str, Field(min_length=1, max_length=63)], ...] = Field(
        (),
        max_length=32,
        description="Groups of API keys of the router's keys file that may use the model; of no use to `quire up`, which has no keys. "
        "Default: every key may.",
        examples=[["team-a"]],
    )


class Routing(Strict):
    """How the router spreads requests over the engines."""

    strategy: Literal["PrefixAffinity", "LeastLoaded", "RoundRobin"] = Field(
        "PrefixAffinity",
        description="`PrefixAffinity`: requests that begin alike go to one engine, unless it has too much to do; `LeastLoaded`; `RoundRobin`. "
        "Default: PrefixAffinity.",
        examples=["LeastLoaded"],
    )


class Spec(Strict):
    """The wanted state."""

    model: Model = Field(description="The model to serve.")
    engine: EngineOptions = Field(
        default_factory=EngineOptions, description="Options of the engine. Unset ones have the engine's defaults."
    )
    image: str = Field(
        "",
        max_length=512,
        pattern=r"^$|^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$",
        description="Image of the engine; of no use to `quire up`. Default: the one the operator was installed with.",
        examples=["registry.example.com/quire-engine:0.1.0"],
    )
    weights: WeightsOptions = Field(default_factory=WeightsOptions, description="What becomes of fetched weights.")
    accelerator: Accelerator = Field(default_factory=Accelerator, description="What the engine computes on.")
    parallelism: Parallelism = Field(
        default_factory=Parallelism,
        description="Several devices for one engine: a pod asks for `tensor` times `pipeline` of them, and `quire up` takes as many. "
        "Without devices, on CPUs, they are processes that share the cores.",
    )
    replicas: int = Field(
        1,
        ge=0,
        le=1000,
        description="How many engines serve the model, unless `autoscaling.mode` is Builtin. Default: 1.",
        examples=[2],
    )
    autoscaling: Autoscaling = Field(default_factory=Autoscaling, description="Who decides how many engines there are.")
    access: Access = Field(default_factory=Access, description="Who may use the model through the router.")
    routing: Routing = Field(default_factory=Routing, description="How the router spreads requests over the engines.")
    rollout: Rollout = Field(
        default_factory=Rollout,
        description="How an edit reaches the engines; of no use to `quire up`, which does as `Auto` and keeps the old ones until the new ones serve.",
    )
    health: Health = Field(default_factory=Health, description="How long the engine may take to show that it works.")
    drain: Drain = Field(default_factory=Drain, description="How an engine ends.")
    scheduling: Scheduling = Field(
        default_factory=Scheduling, description="Where the pods may run; of no use to `quire up`."
    )
    disruption: Disruption = Field(
        default_factory=Disruption, description="What node drains may take away at a time; of no use to `quire up`."
    )
    pod_template: dict[str, Any] = Field(
        default_factory=dict,
        description="What else the pods are to have, as in a pod template: labels, annotations, more variables, volumes, containers, pull secrets. "
        "It is merged over what Quire makes: the engine's container is `engine`, the one that fetches is the init container `weights`. "
        "What Quire needs as it is, is refused. Of no use to `quire up`. Default: nothing.",
        examples=[{"spec": {"imagePullSecrets": [{"name": "registry"}]}}],
    )
    suspend: bool = Field(
        False,
        description="No engine runs, whoever wants some; everything else is kept, and `replicas` counts again afterwards. Default: false.",
        examples=[True],
    )
    paused: bool = Field(
        False,
        description="Nothing is changed: no edit takes effect, and on a cluster a roll-out that has begun stands still. Default: false.",
        examples=[True],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.rollout.progressDeadline) > duration(self.health.startupTimeout)",
            message="rollout.progressDeadline must be longer than health.startupTimeout: raise it, for an engine may load as long as that",
            holds=lambda s: seconds(s.rollout.progress_deadline) > seconds(s.health.startup_timeout),
        ),
        Rule(
            cel="!has(self.paused) || !self.paused || !has(self.parallelism) || self.parallelism.nodes == 1",
            message="paused needs parallelism.nodes: 1: engines of several nodes cannot be held in the middle of a roll-out",
            holds=lambda s: not s.paused or s.parallelism.nodes == 1,
        ),
        Rule(
            cel="!(has(self.weights) && has(self.weights.cache)) || self.model.source.uri.matches('^(hf|s3|https)://')",
            message="weights.cache is for what is fetched: hf://, s3:// or https://",
            holds=lambda s: s.weights.cache is None or s.model.source.is_fetched,
        ),
    )


class Metadata(Strict):
    """The part of Kubernetes metadata that we read; the rest of it is the API server's matter."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(min_length=1)
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    annotations: dict[str, str] | None = None


class LLMDeployment(Strict):
    """One served model."""

    api_version: Literal["quire.dev/v1alpha1"]
    kind: Literal["LLMDeployment"]
    metadata: Metadata
    spec: Spec
    status: dict[str, Any] | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.metadata.name.size() <= {NAME_MAX} && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')",
            message=f"metadata.name must begin with a letter, have only a-z, 0-9 and -, and at most {NAME_MAX} characters, "
            "for it names the Service; model.name may hold anything clients like",
            holds=lambda d: _is_name(d.metadata.name),
        ),
        Rule(
            cel=f"self.metadata.name.size() <= {GROUPS_NAME_MAX} || !has(self.spec.parallelism) || !has(self.spec.parallelism.nodes) || self.spec.parallelism.nodes == 1",
            message=f"metadata.name must have at most {GROUPS_NAME_MAX} characters where spec.parallelism.nodes is above 1, for labels of the pods are made of it",
            holds=lambda d: len(d.metadata.name) <= GROUPS_NAME_MAX or d.spec.parallelism.nodes == 1,
        ),
        Rule(
            cel="!has(self.spec.model.aliases) || !(self.metadata.name in self.spec.model.aliases) || has(self.spec.model.name)",
            message="spec.model.aliases must not repeat metadata.name, which is the model's name unless model.name is set",
            holds=lambda d: d.spec.model.name is not None or d.metadata.name not in d.spec.model.aliases,
        ),
    )

    @classmethod
    def parse(cls, resource: Mapping[str, Any]) -> Self:
        """Validate as strictly as the API server does; raises InvalidInput with every path and fix."""
        try:
            return cls.model_validate_json(json.dumps(resource, default=str), strict=True, by_alias=True, by_name=False)
        except TypeError as error:
            raise InvalidInput([f"resource: {error}; quote what YAML takes for a date or a number"]) from None
        except ValidationError as error:
            raise explain(error, cls, _path) from None

    @property
    def wants_upgrade(self) -> bool:
        """Engines are to be what this operator would make of them, not what an older one made of the same spec."""
        return (self.metadata.annotations or {}).get(UPGRADE_ANNOTATION) == "true"

    @property
    def model_names(self) -> tuple[str, ...]:
        """What clients may send as `model`; the first is reported back."""
        return (self.spec.model.name or self.metadata.name, *self.spec.model.aliases)


def _is_name(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789-")
    return len(name) <= NAME_MAX and set(name) <= allowed and "a" <= name[0] <= "z" and name[-1] != "-"


def _path(location: tuple[str | int, ...]) -> str:
    """('spec', 'model', 'aliases', 0) -> 'spec.model.aliases[0]'."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else ("." if text else "") + step
    return text or "resource"
