"""From models that are declared, and the EndpointSlices of their Services, to the registry. Pure.

    ready                       an engine
    terminating, still serving  it finishes what it has, and gets nothing new
    neither                     out

Rule: a model without any engine stays in the registry, so that requests for it are held.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire_router.registry import Endpoint, Model, Registry

__all__ = ["SERVICE_LABEL", "Picture", "draw"]

Object = Mapping[str, Any]

SERVICE_LABEL = "kubernetes.io/service-name"
PORT_NAME = "http"  # of the engine, in the Service that the operator makes


@dataclass(frozen=True, slots=True)
class Picture:
    registry: Registry
    shadowed: tuple[str, ...]  # what cannot be reached by a name because an older resource has it, as sentences


def draw(models: Iterable[Model], slices: Iterable[Object]) -> Picture:
    """`models` in the order of their age: of two that share a name, the older one has it."""
    by_service: dict[str, list[Object]] = defaultdict(list)
    for each in slices:
        metadata = each["metadata"]
        by_service[f"{metadata['namespace']}/{metadata.get('labels', {}).get(SERVICE_LABEL)}"].append(each)
    drawn: list[Model] = []
    owners: dict[str, str] = {}
    shadowed: list[str] = []
    for model in models:
        lost = [name for name in model.names if name in owners]
        shadowed += [f"{model.resource} is not reached as {name}, which {owners[name]} had before" for name in lost]
        if model.name in lost:
            continue  # its first name is how it is asked for, counted and shown
        free = tuple(name for name in model.aliases if name not in lost)
        owners |= dict.fromkeys((model.name, *free), model.resource)
        drawn.append(_with_engines(replace(model, aliases=free), by_service.get(model.resource, [])))
    return Picture(Registry(tuple(drawn)), tuple(shadowed))


def _with_engines(model: Model, slices: Iterable[Object]) -> Model:
    """A Service has the name of its resource."""
    draining: dict[str, bool] = {}
    for address, drains in _addresses(slices):
        draining[address] = drains and draining.get(
            address, True
        )  # in two slices while it moves: the better word counts
    endpoints = tuple(Endpoint(address=address, draining=drains) for address, drains in sorted(draining.items()))
    ready = sum(not endpoint.draining for endpoint in endpoints)
    return replace(model, endpoints=endpoints, loading=max(0, (model.desired or 0) - ready))


def _addresses(slices: Iterable[Object]) -> Iterable[tuple[str, bool]]:
    """host:port of each engine that serves, and whether it is on its way out."""
    for each in slices:
        port = next((p.get("port") for p in each.get("ports") or [] if p.get("name") == PORT_NAME), None)
        for endpoint in each.get("endpoints") or []:
            conditions = endpoint.get("conditions") or {}
            drains = bool(conditions.get("terminating"))
            serves = conditions.get("serving") if drains else conditions.get("ready")
            if port is not None and serves is not False:  # the API: not said is yes
                for address in endpoint["addresses"][:1]:  # more would be the same engine
                    yield (f"[{address}]:{port}" if ":" in address else f"{address}:{port}"), drains
