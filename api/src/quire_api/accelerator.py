"""What an engine computes on: which devices, and how many of them together."""

from typing import ClassVar

from pydantic import Field

from quire_api.base import Rule, Strict

__all__ = ["Accelerator", "Parallelism"]


class Accelerator(Strict):
    """What the engine computes on."""

    profile: str = Field(
        "nvidia",
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]+([.-]+[a-z0-9]+)*$",
        description="`nvidia` asks for a GPU (`nvidia.com/gpu`); `cpu` asks for none; a cluster may have more, for parts of a GPU (MIG) "
        "or for nodes of one kind: `acceleratorProfiles` of the chart. Default: nvidia.",
        examples=["cpu"],
    )


class Parallelism(Strict):
    """Several devices for one engine: a model that is too large for one, or is to answer faster."""

    tensor: int = Field(
        1,
        ge=1,
        le=64,
        description="Devices that compute every layer together. It must divide the model's attention heads. Default: 1.",
        examples=[2],
    )
    pipeline: int = Field(
        1,
        ge=1,
        le=64,
        description="Stages that have the layers one after another, each of `tensor` devices: room, not speed. Default: 1.",
        examples=[2],
    )
    nodes: int = Field(
        1,
        ge=1,
        le=16,
        description="Nodes that one engine is on, each with a pod that has as many of the devices as the others: a model that is too large for a node. "
        "On a cluster with LeaderWorkerSet; it stays as the resource was made with. Default: 1.",
        examples=[2],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.tensor * self.pipeline % self.nodes == 0",
            message="nodes must divide tensor times pipeline: each node has as many devices as the others",
            holds=lambda p: p.devices % p.nodes == 0,
        ),
    )

    @property
    def devices(self) -> int:
        """Of one engine."""
        return self.tensor * self.pipeline
