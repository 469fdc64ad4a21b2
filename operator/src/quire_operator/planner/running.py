"""What follows the engines that run, and not the spec: after a roll-back, and while engines are held, the two differ. Pure.

    of the spec         how many, how to roll, who may interrupt, where the address is
    of what runs        the ports that are open, the image, the model, the name that it answers to

Rule: while there are engines of several templates, what is open is open for all of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire_api.resolved import ModelStatus
from quire_api.status import DeploymentStatus
from quire_operator.planner.observed import Manifest, Observed, Revision
from quire_operator.planner.revisions import engine_of, model_of

__all__ = ["Facts", "facts_of", "held_facts", "live", "opened", "ports"]

NAME_FLAG = "--served-model-name="


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    image: str
    model_name: str
    model: ModelStatus | None


def live(observed: Observed) -> Revision | None:
    """Which revision engines are being made of; None while there is none."""
    return next((r for r in observed.history if r.id == observed.workload.revision), None)


def opened(objects: Iterable[Manifest], target: Revision, observed: Observed) -> tuple[Manifest, ...]:
    """`objects` with a NetworkPolicy that lets in what engines of `target` listen to, and those which others still do."""
    workload = observed.workload
    alone = workload.current and workload.revision == target.id and workload.replicas == workload.updated
    others = [] if alone else [revision.template for revision in observed.history]
    listened = ports((target.template, *others))
    return tuple(_with_ports(o, listened) if o["kind"] == "NetworkPolicy" else o for o in objects)


def facts_of(asked: Facts, pin: ModelStatus | None, wanted: bool, target: Revision, observed: Observed) -> Facts:
    """Of engines of `target`. `asked` is what the spec says, with the answer `pin`; `wanted`: it is what they are made of."""
    engine = engine_of(target.template)
    image = str(engine.get("image", "")) or asked.image
    # An answer that no template keeps is told of for as long as it is wanted, else it would have to be asked for again.
    if wanted or not (pin is None or pin in [model_of(revision) for revision in observed.history]):
        return replace(asked, image=image, model=pin)
    names = [word.removeprefix(NAME_FLAG) for word in engine.get("command", ()) if word.startswith(NAME_FLAG)]
    return Facts(image=image, model_name=next(iter(names), asked.model_name), model=model_of(target))


def held_facts(standing: DeploymentStatus, asked: Facts, fetched: bool) -> Facts:
    """While engines are held, of what they were made of before."""
    return Facts(
        image=standing.image or asked.image,
        model_name=standing.model_name or asked.model_name,
        model=standing.model if fetched else None,
    )


def ports(templates: Iterable[Manifest]) -> list[dict[str, Any]]:
    """That the containers of pods name, as a NetworkPolicy writes them."""
    found = {
        (port["containerPort"], port.get("protocol", "TCP"))
        for template in templates
        for container in (template.get("spec") or {}).get("containers") or ()
        for port in container.get("ports") or ()
    }
    return [{"port": port, "protocol": protocol} for port, protocol in sorted(found)]


def _with_ports(policy: Mapping[str, Any], listened: list[dict[str, Any]]) -> Manifest:
    _, *among = policy["spec"]["ingress"]
    return {**policy, "spec": {**policy["spec"], "ingress": [{"ports": listened}, *among]}}
