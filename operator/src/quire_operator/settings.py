"""What the installation decides, for all resources: the flags of `quire operator`, set by the chart."""

from quire_api.base import Strict

__all__ = ["PROFILES", "AcceleratorProfile", "OperatorSettings"]


class OperatorSettings(Strict):
    engine_image: str = "quire-engine:0.1.0"
    """Image of engines whose resource names none. The chart sets it to its own version."""

    cluster_domain: str = "svc.cluster.local"
    """Only for `status.url`, which people paste."""

    router_url: str = ""
    """Of the routers, for `status.url`. Without it that is the model's own Service, which holds no requests at zero."""

    routers: str = ""
    """host:port of all routers' internal ports. Without it nobody holds requests, and nothing goes to zero."""


class AcceleratorProfile(Strict):
    """What a profile's name means for a pod."""

    device: str
    """The engine's `--device`."""

    resource: str | None
    """The extended resource of one device, or None where there is none to ask for."""

    requests: dict[str, str]
    """Floor of what the scheduler sets aside; no limits, so that an idle machine can be used."""

    read_only_root: bool
    """GPU device hooks write into the container's root file system."""


PROFILES: dict[str, AcceleratorProfile] = {
    "cpu": AcceleratorProfile(
        device="cpu", resource=None, requests={"cpu": "250m", "memory": "512Mi"}, read_only_root=True
    ),
    "nvidia": AcceleratorProfile(
        device="cuda", resource="nvidia.com/gpu", requests={"cpu": "2", "memory": "8Gi"}, read_only_root=False
    ),
}
