"""What an engine computes on: which devices, and how many of them together."""

from pydantic import Field

from quire_api.base import Strict

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
    """Several devices for one engine, of one pod: a model that is too large for one, or is to answer faster."""

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

    @property
    def devices(self) -> int:
        """Of one engine."""
        return self.tensor * self.pipeline
