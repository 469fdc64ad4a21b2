"""A resource as processes of this machine: one template for its engines, each a `quire serve` on a socket of its own.

It has the form of a Deployment, so that one planner serves both worlds: how many engines there are is its scale.
"""

from quire_api.deployment import LLMDeployment, seconds
from quire_api.errors import InvalidInput
from quire_operator.planner.plan import Desired
from quire_operator.render.engine import engine_argv
from quire_operator.render.names import selector
from quire_operator.settings import PROFILES, profile_of

__all__ = ["render"]


def render(deployment: LLMDeployment, url: str) -> Desired:
    """`url` is the router's."""
    if deployment.spec.autoscaling.mode == "HPA":
        raise InvalidInput(
            [
                "spec.autoscaling.mode: HPA needs a cluster, which has HorizontalPodAutoscalers; on one machine take Builtin or Manual"
            ]
        )
    if deployment.spec.parallelism.nodes > 1:
        raise InvalidInput(
            ["spec.parallelism.nodes: this is one machine; set it to 1, or apply the resource to a cluster"]
        )
    profile = profile_of(deployment.spec.accelerator.profile, PROFILES)
    source = deployment.spec.model.source
    template = {
        "apiVersion": "quire.dev/local",
        "kind": "Deployment",
        "metadata": {"name": deployment.metadata.name, "namespace": deployment.metadata.namespace},
        "spec": {
            "selector": {"matchLabels": selector(deployment)},
            "template": {
                "command": engine_argv(
                    deployment,
                    device=profile.device,
                    **({"include": source.include} if source.include else {}),
                ),
                "gpus": 0 if profile.resource is None else deployment.spec.parallelism.devices,
                "graceSeconds": seconds(deployment.spec.drain.timeout) + 5,
            },
        },
    }
    return Desired(objects=(template,), replicas=deployment.spec.replicas, url=url, image="")
