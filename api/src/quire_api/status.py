"""The status of an LLMDeployment: conditions, and the closed set of their reasons.

Tools read, in this order: `observedGeneration`, `Reconciling`, `Stalled`, `Ready` (kstatus, so that
Argo CD, Flux and `kubectl wait` agree with people). `Reconciling` and `Stalled` are absent when
false. `Stalled` is only for what a user must mend.
"""

from typing import Literal

from pydantic import Field

from quire_api.base import Strict
from quire_api.reasons import ConditionType, ScaleReason
from quire_api.resolved import ModelStatus
from quire_api.rollout import RevisionStatus

__all__ = [
    "AutoscalingStatus",
    "Child",
    "Condition",
    "DeploymentStatus",
    "ScaleEvent",
    "ScaleInputs",
    "WeightsStatus",
]


class Condition(Strict):
    """One finding about the resource."""

    type: str = Field(max_length=64, description="Which condition.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(max_length=64, description="Why, in one word; docs/reference/conditions.md lists all of them.")
    message: str = Field("", max_length=2048, description="Why, in a sentence, with the fix.")
    last_transition_time: str = Field(
        "", max_length=40, json_schema_extra={"format": "date-time"}, description="When the status last changed."
    )
    observed_generation: int = Field(0, ge=0, description="The generation of the spec which this is about.")


class Child(Strict):
    """An object that was made for the resource."""

    kind: str = Field(max_length=64, description="Kind of the object.")
    name: str = Field(max_length=253, description="Name of the object.")


class ScaleInputs(Strict):
    """What a decision was made of."""

    replicas: int = Field(0, ge=0, description="Engines that existed, loading ones among them.")
    ready: int = Field(0, ge=0, description="Engines that served.")
    running: int = Field(0, ge=0, description="Requests in service.")
    waiting: int = Field(0, ge=0, description="Requests that waited, in engines and in the router.")
    kv_cache_utilization: str = Field("", max_length=8, description="Mean share of the KV cache in use.")
    ttft_p95: str = Field(
        "",
        max_length=16,
        description="Time to the first token, the 95th percentile of a minute, in the slowest engine; empty: none came.",
    )
    needed_tokens: int = Field(0, ge=0, description="Tokens that have to be in flight to serve the demand.")
    capacity_tokens: int = Field(0, ge=0, description="Tokens in flight that one engine carries; 0: not known yet.")


class ScaleEvent(Strict):
    """One change of the number of engines."""

    at: str = Field(max_length=40, json_schema_extra={"format": "date-time"}, description="When it was decided.")
    before: int = Field(ge=0, description="Engines before.")
    desired: int = Field(ge=0, description="Engines wanted since.")
    reason: ScaleReason = Field(description="Why; docs/reference/conditions.md lists all reasons.")
    inputs: ScaleInputs = Field(description="What it was decided from.")


class AutoscalingStatus(Strict):
    """What the built-in autoscaler decided last, and what it has learned."""

    desired: int = Field(0, ge=0, description="Engines that are wanted.")
    capacity_tokens: int = Field(0, ge=0, description="Tokens in flight that one engine carries, as far as was seen.")
    cold_start: str = Field("", max_length=16, description="How long an engine took to be ready, measured.")
    history: tuple[ScaleEvent, ...] = Field((), max_length=5, description="The last five changes, newest first.")


class WeightsStatus(Strict):
    """How far the weights are that engines fetch, as they themselves say."""

    progress_percent: int | None = Field(
        None,
        ge=0,
        le=100,
        description="How much has come, in steps of 10, to the engine that is furthest behind of those that have said; 100: none fetches any more. Absent: none has said yet.",
    )
    bytes_per_second: int = Field(0, ge=0, description="How fast, when it reached that step.")
    message: str = Field("", max_length=512, description="Which engine, and what it does.")


class DeploymentStatus(Strict):
    """The observed state. No field ticks: it changes when something happened."""

    observed_generation: int = Field(0, ge=0, description="The generation of the spec which this status is about.")
    url: str = Field("", max_length=512, description="Base address of the OpenAI API.")
    model_name: str = Field("", max_length=128, description="What clients send as `model`.")
    selector: str = Field("", max_length=512, description="Selects the engine pods; the scale subresource reads it.")
    replicas: int = Field(0, ge=0, description="Engines that exist.")
    ready_replicas: int = Field(0, ge=0, description="Engines that serve.")
    serving: str = Field("", max_length=16, description="Engines that serve of those wanted, for people: `2/3`.")
    image: str = Field("", max_length=512, description="Image which the engines run.")
    model: ModelStatus | None = Field(None, description="What was found at the source, of a model that is fetched.")
    weights: WeightsStatus | None = Field(
        None,
        description="Of a model that is fetched, on a cluster, while an engine exists that fetches or has fetched it.",
    )
    revision: RevisionStatus | None = Field(None, description="Which pod template the engines come from, on a cluster.")
    autoscaling: AutoscalingStatus | None = Field(None, description="Of mode Builtin.")
    children: tuple[Child, ...] = Field((), max_length=32, description="The objects made for this resource.")
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        description="Ready and Available; Reconciling, Stalled, Progressing, Degraded and UpgradeWaiting while there is something to say; "
        "AutoscalingActive unless replicas are set by hand.",
    )

    def condition(self, kind: ConditionType) -> Condition | None:
        return next((c for c in self.conditions if c.type == kind), None)
