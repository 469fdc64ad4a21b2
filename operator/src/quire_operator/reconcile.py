"""One turn of the loop, the same for a cluster and for one machine: observe, plan, carry out, say so."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from quire_api.deployment import LLMDeployment
from quire_api.status import DeploymentStatus
from quire_operator.planner.conditions import refused
from quire_operator.planner.observed import Key, Observed
from quire_operator.planner.plan import Action, Desired, Plan, plan

log = logging.getLogger("quire.reconcile")

__all__ = ["Backend", "NameTaken", "Refused", "ResourceKey", "reconcile"]


class ResourceKey(NamedTuple):
    namespace: str
    name: str


class NameTaken(Exception):
    """An object that was to be created exists and is not ours."""

    def __init__(self, key: Key, owner: str) -> None:
        super().__init__(f"{key.kind} {key.name} belongs to {owner}")
        self.key, self.owner = key, owner


class Refused(Exception):
    """The backend would not carry out an action: a quota, a webhook, a missing right, an outage."""


class Backend(Protocol):
    def observe(self, key: ResourceKey) -> tuple[Mapping[str, Any], Observed] | None:
        """The resource and the snapshot; None when it is gone. Reads what is already here, waits for nothing."""
        ...

    def render(self, deployment: LLMDeployment) -> Desired: ...

    async def execute(self, key: ResourceKey, action: Action) -> None:
        """Carry out one action; doing it twice does no harm."""
        ...

    async def write_status(self, key: ResourceKey, status: DeploymentStatus) -> None: ...


async def reconcile(
    key: ResourceKey, backend: Backend, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> float | None:
    """Seconds until the resource wants to be looked at again; None: when something changes; infinity: it is gone.

    After something was done the world is looked at once more, so that the status tells of what is and not of
    what was to be done: applying again what is there already must not look like a roll-out.
    """
    conflicts: dict[Key, str] = {}
    for last in (False, False, True):
        seen = backend.observe(key)
        if seen is None:
            return math.inf
        resource, observed = seen[0], replace(seen[1], conflicts=conflicts)
        decision = plan(resource, observed, backend.render, now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        try:
            await _carry_out(key, decision, backend)
        except NameTaken as taken:
            conflicts[taken.key] = taken.owner
            continue
        except Refused as refusal:
            await backend.write_status(
                key, refused(decision.status, str(refusal), now().strftime("%Y-%m-%dT%H:%M:%SZ"))
            )
            raise
        if not decision.actions or last:
            break
    if decision.status != observed.status:
        await backend.write_status(key, decision.status)
    return decision.requeue_after


async def _carry_out(key: ResourceKey, decision: Plan, backend: Backend) -> None:
    """In order; the first failure stops, and the next turn plans anew."""
    for action in decision.actions:
        log.info("%s/%s: %s %s %s", key.namespace, key.name, type(action).__name__.lower(), *action.key)
        await backend.execute(key, action)
