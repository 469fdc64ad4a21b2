"""Which pod template belongs to a spec, and how templates are kept: as ControllerRevisions, each with what its source had said. Pure.

Rule: while the part of the spec that pods are made of is the same, so is the template, whatever a newer operator would
make of it. What only says how many, how or whether to roll is no part of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quire_api.deployment import GROUP, LLMDeployment
from quire_api.resolved import ModelStatus
from quire_operator.planner.observed import Manifest, Revision, digest
from quire_operator.render.names import REVISION_LABEL

__all__ = ["as_object", "edit_digest", "engine_of", "from_object", "model_of", "revision_id", "wanted"]

SPEC_LABEL = f"{GROUP}/spec"  # of a ControllerRevision: digest of the spec that its template was made for

NOT_IN_PODS = {"replicas", "autoscaling", "access", "routing", "disruption", "rollout", "suspend", "paused"}
SHORT = 12
ENGINE = "engine"  # name of a container


def revision_id(template: Manifest) -> str:
    labels: Mapping[str, str] = (template.get("metadata") or {}).get("labels") or {}
    return labels.get(REVISION_LABEL, "")


def engine_of(template: Manifest) -> Manifest:
    """The container that computes; empty where there is none."""
    containers = (template.get("spec") or {}).get("containers") or []
    return next((container for container in containers if container.get("name") == ENGINE), {})


def edit_digest(deployment: LLMDeployment) -> str:
    """Another one for every edit that may mend a revision: not of `replicas`, which autoscalers write, nor of what only stops it."""
    parts = deployment.spec.model_dump(mode="json", exclude_defaults=True, exclude={"replicas", "suspend", "paused"})
    return digest(parts)[:SHORT]


def wanted(
    deployment: LLMDeployment,
    pin: ModelStatus | None,
    template: Manifest,
    history: Mapping[str, Revision],
    last_good: str,
) -> tuple[Revision, bool]:
    """The revision that the spec asks for, and whether `template`, which is what would be made of it now, is another one.

    `pin` is what its source means now; None where it can mean but one thing.
    """
    spec, fresh = _spec_digest(deployment, pin.revision if pin is not None else ""), revision_id(template)
    made_for_it = [r for r in history.values() if r.spec == spec]
    if made_for_it and not deployment.wants_upgrade:
        found = max(made_for_it, key=lambda r: (r.id == last_good, r.number))
        return found, found.id != fresh
    if fresh in history:  # an edit that makes no difference to pods
        return replace(history[fresh], spec=spec), False
    number = 1 + max((r.number for r in history.values()), default=0)
    model = pin.kept if pin is not None else None
    return Revision(id=fresh, number=number, spec=spec, template=template, model=model), False


def model_of(revision: Revision) -> ModelStatus | None:
    """What its source had said; None where nobody was asked, or it was not kept."""
    return ModelStatus.from_kept(revision.model) if revision.model is not None else None


def as_object(workload: Manifest, revision: Revision) -> Manifest:
    """Named after the workload, and owned by whoever owns that."""
    metadata = workload["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            **metadata,
            "name": f"{metadata['name']}-{revision.id}",
            "labels": {**metadata["labels"], SPEC_LABEL: revision.spec},
        },
        "revision": revision.number,
        "data": {"template": revision.template, **({"model": revision.model} if revision.model is not None else {})},
    }


def from_object(live: Mapping[str, Any]) -> Revision | None:
    """None when it holds no template of ours."""
    data = live.get("data") or {}
    template = data.get("template") or {}
    if not revision_id(template):
        return None
    spec = (live["metadata"].get("labels") or {}).get(SPEC_LABEL, "")
    return Revision(
        id=revision_id(template), number=live.get("revision", 0), spec=spec, template=template, model=data.get("model")
    )


def _spec_digest(deployment: LLMDeployment, pin: str) -> str:
    """Of what pods are made of. Defaults are left out, so that an option which is new to the operator changes nothing."""
    parts = deployment.spec.model_dump(mode="json", exclude_defaults=True, exclude=NOT_IN_PODS)
    return digest({**parts, "pin": pin} if pin else parts)[:SHORT]
