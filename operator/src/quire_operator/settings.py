"""What the installation decides, for all resources: the flags of `quire operator`, set by the chart."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from quire_api.base import Strict
from quire_api.errors import InvalidInput
from quire_api.placement import Toleration

__all__ = ["PROFILES", "AcceleratorProfile", "LeaseName", "OperatorSettings", "profile_of"]


class AcceleratorProfile(Strict):
    """What a profile's name means for a pod. Unless it says otherwise it is about one whole NVIDIA GPU."""

    device: str = "cuda"
    """The engine's `--device`."""

    resource: str | None = "nvidia.com/gpu"
    """The extended resource of one device, such as `nvidia.com/mig-3g.20gb`, or None where there is none to ask for."""

    memory_gib: float | None = Field(None, gt=0)
    """Memory of one device, for the check whether a model fits; None: not known, and only the engine says."""

    requests: dict[str, str] = Field(default_factory=lambda: {"cpu": "2", "memory": "8Gi"})
    """Floor of what the scheduler sets aside; no limits, so that an idle machine can be used."""

    read_only_root: bool = False
    """GPU device hooks write into the container's root file system."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes that have such devices."""

    tolerations: tuple[Toleration, ...] = ()
    """Taints of those nodes."""

    environment: dict[str, str] = Field(default_factory=dict)
    """Variables of the engine."""


PROFILES: dict[str, AcceleratorProfile] = {
    "cpu": AcceleratorProfile(
        device="cpu", resource=None, requests={"cpu": "250m", "memory": "512Mi"}, read_only_root=True
    ),
    "nvidia": AcceleratorProfile(),
}


class OperatorSettings(Strict):
    engine_image: str = "quire-engine:0.1.0"
    """Image of engines whose resource names none. The chart sets it to its own version."""

    cluster_domain: str = "svc.cluster.local"
    """Only for `status.url`, which people paste."""

    profiles: dict[str, AcceleratorProfile] = PROFILES
    """What `accelerator.profile` may name."""

    leader_worker_sets: bool = True
    """Whether the cluster has them, which engines on several nodes are made of."""

    router_url: str = ""
    """Of the routers, for `status.url`. Without it that is the model's own Service, which holds no requests at zero."""

    routers: str = ""
    """host:port of all routers' internal ports. Without it nobody holds requests, and nothing goes to zero."""


def profile_of(name: str, profiles: Mapping[str, AcceleratorProfile]) -> AcceleratorProfile:
    if name not in profiles:
        raise InvalidInput(
            [f"spec.accelerator.profile: there is no profile {name!r} here; there are {', '.join(sorted(profiles))}"]
        )
    return profiles[name]


@dataclass(frozen=True, slots=True)
class LeaseName:
    """Which Lease one operator holds at a time (`lease.py`)."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
