"""What a resource says of the model that it declares: names, who may use it, how requests are spread and held. Pure.

The same for a cluster and for one machine. Where its engines are, and how many are on their way, others add.
"""

from dataclasses import replace
from datetime import datetime

from quire_api.base import seconds
from quire_api.deployment import LLMDeployment
from quire_api.reasons import SCALE_REASONS
from quire_api.status import DeploymentStatus
from quire_router.registry import Model, Scaling, Strategy

__all__ = ["declared"]


def declared(deployment: LLMDeployment, status: DeploymentStatus | None) -> Model:
    """Without engines."""
    metadata, zero = deployment.metadata, deployment.spec.autoscaling.scale_to_zero
    name, *aliases = deployment.model_names
    model = Model(
        name=name,
        aliases=tuple(aliases),
        history=_history(status),
        resource=f"{metadata.namespace}/{metadata.name}",
        desired=_desired(deployment, status),
        groups=deployment.spec.access.groups,
        strategy=Strategy(deployment.spec.routing.strategy),
    )
    if zero is None:
        return model
    return replace(model, hold_requests=zero.wake.max_queued, hold_s=float(seconds(zero.wake.max_wait)))


def _desired(deployment: LLMDeployment, status: DeploymentStatus | None) -> int:
    """As many engines as are wanted: whoever decides it."""
    if deployment.spec.suspend:
        return 0
    decided = status.autoscaling if status is not None else None
    return deployment.spec.replicas if decided is None else decided.desired


def _history(status: DeploymentStatus | None) -> tuple[Scaling, ...]:
    """What the autoscaler decided, for the dashboard; newest first."""
    events = status.autoscaling.history if status is not None and status.autoscaling is not None else ()
    return tuple(
        Scaling(
            at=datetime.fromisoformat(event.at).timestamp(),
            before=event.before,
            after=event.desired,
            reason=SCALE_REASONS[event.reason],
        )
        for event in events
    )
