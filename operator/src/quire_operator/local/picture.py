"""What a resource and its engines are like now, as JSON for the commands. docs/local.md describes it."""

from typing import Any

from quire_api.deployment import LLMDeployment
from quire_api.status import DeploymentStatus
from quire_operator.backends.local import Engine, LocalBackend
from quire_operator.reconcile import ResourceKey
from quire_router import Demand

__all__ = ["picture"]


def picture(
    key: ResourceKey, backend: LocalBackend, demand: Demand | None, written: LLMDeployment | None
) -> dict[str, Any]:
    """`written` is what the YAML file says, which `quire scale` may have overruled."""
    resource, status = backend.resource(key), backend.status(key)
    shown = resource.model_dump(mode="json", by_alias=True, exclude_unset=True)
    shown["metadata"].pop("uid", None)
    shown["spec"]["replicas"] = resource.spec.replicas
    shown["status"] = {} if status is None else status.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    overruled = written is not None and written.spec.replicas != resource.spec.replicas
    revision = backend.revision(key)
    wanted, wanted_by = _wanted(resource, status, overruled)
    return {
        "resource": shown,
        "wanted": wanted,
        "replicasFrom": wanted_by,
        "engines": [_engine(engine, revision) for engine in backend.engines(key)],
        "held": demand.held if demand else 0,
        "inFlight": demand.in_flight if demand else 0,
    }


def _wanted(resource: LLMDeployment, status: DeploymentStatus | None, overruled: bool) -> tuple[int, str]:
    """How many engines, and who says so."""
    if resource.spec.suspend:
        return 0, "spec.suspend"
    if status is not None and status.autoscaling is not None:
        return status.autoscaling.desired, "the autoscaler"
    return resource.spec.replicas, "quire scale" if overruled else "the YAML file"


def _engine(engine: Engine, revision: str) -> dict[str, Any]:
    process = engine.process
    return {
        "name": engine.name,
        "number": engine.number,
        "state": _state(engine),
        "current": engine.revision == revision,
        "pid": process.pid,
        "since": process.since,
        "restarts": process.restarts,
        "devices": list(process.launch.devices),
        "threads": process.launch.environment.get("OMP_NUM_THREADS"),
        "log": str(process.launch.log),
        "failure": None if process.failure is None else process.failure.message,
    }


def _state(engine: Engine) -> str:
    process = engine.process
    if process.draining:
        return "draining"
    if process.ready:
        return "ready"
    return "failed" if process.pid is None and process.failure is not None else "loading"
