"""A resource as processes of this machine: one `quire serve` for each replica, on a socket of its own."""

from pathlib import Path

from quire_api.deployment import LLMDeployment, seconds
from quire_operator.planner.plan import Desired
from quire_operator.render.engine import engine_argv
from quire_operator.settings import PROFILES

__all__ = ["render"]


def render(deployment: LLMDeployment, folder: Path, url: str) -> Desired:
    """`folder` holds sockets and logs; `url` is the router's."""
    profile = PROFILES[deployment.spec.accelerator.profile]
    objects = []
    for replica in range(deployment.spec.replicas):
        name = f"{deployment.metadata.name}-{replica}"
        objects.append(
            {
                "apiVersion": "quire.dev/local",
                "kind": "Process",
                "metadata": {"name": name, "namespace": deployment.metadata.namespace},
                "command": engine_argv(deployment, device=profile.device, uds=str(folder / f"{name}.sock")),
                "socket": str(folder / f"{name}.sock"),
                "log": str(folder / f"{name}.log"),
                "graceSeconds": seconds(deployment.spec.drain.timeout) + 5,
            }
        )
    return Desired(objects=tuple(objects), replicas=None, url=url, image="")
