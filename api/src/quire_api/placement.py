"""Where pods may run, and how many of them may be taken away at a time. Of no use to one machine."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_api.base import Rule, Strict

__all__ = ["Disruption", "Scheduling", "Toleration"]

LabelValue = Annotated[str, Field(max_length=63)]


class Toleration(Strict):
    """A taint that does not keep the pods away; as in a Pod."""

    key: str | None = Field(
        None,
        max_length=316,
        description="Key of the taint. Unset: every taint, with operator Exists.",
        examples=["nvidia.com/gpu"],
    )
    operator: Literal["Equal", "Exists"] = Field(
        "Equal", description="Whether the taint must have this value, or any. Default: Equal.", examples=["Exists"]
    )
    value: str | None = Field(None, max_length=63, description="Value of the taint, with operator Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint. Unset: every effect."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=31_536_000, description="With NoExecute: how long a pod stays, in seconds. Unset: for ever."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            message="a toleration without key needs operator: Exists",
            holds=lambda t: t.key is not None or t.operator == "Exists",
        ),
        Rule(
            cel="!has(self.value) || !has(self.operator) || self.operator == 'Equal'",
            message="a toleration with operator Exists has no value: take it out",
            holds=lambda t: t.value is None or t.operator == "Equal",
        ),
    )


class Scheduling(Strict):
    """Where the pods may run; of no use to `quire up`."""

    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=16,
        description="Labels that a node must have, besides those which the profile asks for. Default: none.",
        examples=[{"pool": "inference"}],
    )
    tolerations: tuple[Toleration, ...] = Field(
        (), max_length=16, description="Taints that do not keep the pods away, besides those of the profile."
    )
    topology_spread: Literal["zone", "node", "none"] = Field(
        "zone",
        description="What the engines of a model are spread over, as far as there is room: `zone`, `node`, or `none`. Default: zone.",
        examples=["node"],
    )
    priority_class_name: str = Field(
        "",
        max_length=253,
        pattern=r"^$|^[a-z0-9]+([.-]+[a-z0-9]+)*$",
        description="PriorityClass of the pods. Default: the cluster's.",
        examples=["inference"],
    )


class Disruption(Strict):
    """What node drains may take away at a time."""

    max_unavailable: int = Field(
        1,
        ge=1,
        le=1000,
        description="Engines that a node drain may take at a time; there is no such bound while there is to be but one. Default: 1.",
        examples=[2],
    )
