"""`spec.podTemplate` over a pod template of ours: what users want of a pod beyond what we know to ask for.

    maps     merged, key by key
    lists    of what has a name: merged by it, and what is new comes last (`MERGED_BY`); other lists are replaced

What we need as it is, is refused rather than overwritten or ignored; `refusals` says it in sentences. A null would take
something away, but `kubectl apply` loses nulls on the way: refused as well, so that nobody counts on it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from quire_api.deployment import GROUP
from quire_api.errors import InvalidInput
from quire_operator.render.objects import Manifest

__all__ = ["patched"]

AT = "spec.podTemplate"

MERGED_BY = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "ports": "containerPort",
    "volumeMounts": "mountPath",
    "topologySpreadConstraints": "topologyKey",
}
FREE = ("labels", "annotations", "nodeSelector", "limits", "requests", "matchLabels")  # their keys are the user's words
HOW_ELSE = {  # parts of a container of ours -> what sets them
    "command": "spec.engine has the engine's options, and `args` of the container adds to them",
    "image": "spec.image sets it",
    "ports": "the Service and the probes lead there; other ports may be added",
}


def patched(template: Manifest, patch: Mapping[str, Any]) -> Manifest:
    """InvalidInput, with every reason, where the patch would change what must stay or is no pod template."""
    problems = [*_out_of_place(patch)]
    merged: Manifest = _merged_map(template, patch, AT, problems)
    if not problems:
        problems += _changed(template, merged)
    if problems:
        raise InvalidInput(problems)
    return merged


def _out_of_place(patch: Mapping[str, Any]) -> Iterator[str]:
    metadata = patch.get("metadata")
    levels = ((AT, patch, ("metadata", "spec")), (f"{AT}.metadata", metadata, ("labels", "annotations")))
    for path, part, names in levels:
        if isinstance(part, Mapping):
            yield from (f"{path}.{name}: only {' and '.join(names)} are taken" for name in part if name not in names)


def _merged(name: str, ours: Any, theirs: Any, path: str, problems: list[str]) -> Any:
    """`ours` is None where there is nothing yet; mistakes are added to `problems`."""
    if theirs is None:
        problems.append(f"{path}: null takes nothing away; leave it out")
    elif name in MERGED_BY:
        if isinstance(theirs, list):
            return _merged_list(MERGED_BY[name], name, ours or [], theirs, path, problems)
        problems.append(f"{path}: must be a list, as in a Pod")
    elif isinstance(theirs, dict):
        if name not in FREE:
            return _merged_map(ours or {}, theirs, path, problems)
        return {**(ours or {}), **theirs}
    elif isinstance(ours, dict):
        problems.append(f"{path}: must be a map, as in a Pod")
    return theirs


def _merged_map(ours: Mapping[str, Any], theirs: Mapping[str, Any], path: str, problems: list[str]) -> Manifest:
    directives = [name for name in theirs if name.startswith("$")]
    problems += [f"{path}.{name}: directives are not taken; say what is to be there" for name in directives]
    merged = {name: _merged(name, ours.get(name), value, f"{path}.{name}", problems) for name, value in theirs.items()}
    return {**ours, **merged}


def _merged_list(key: str, name: str, ours: list[Any], theirs: list[Any], path: str, problems: list[str]) -> list[Any]:
    merged = {each[key]: each for each in ours}
    for number, each in enumerate(theirs):
        identity = each.get(key) if isinstance(each, dict) else None
        if not isinstance(identity, str | int):
            problems.append(f"{path}[{number}]: needs {key}")
            continue
        before = merged.get(identity, {})
        if name == "volumes" and not (set(each) & set(before)) - {key}:
            before = {}  # a volume is of one kind: another one takes its place
        merged[identity] = _merged_map(before, each, f"{path}[{identity}]", problems)
    return list(merged.values())


def _changed(before: Manifest, after: Manifest) -> Iterator[str]:
    """A sentence for each part of ours that would not be as we need it."""
    ours, labels = before["metadata"]["labels"], after["metadata"]["labels"]
    for name in labels:
        if (name in ours or name.startswith(f"{GROUP}/")) and labels[name] != ours.get(name):
            yield f"{AT}.metadata.labels.{name}: Quire finds its pods by it; choose another label"
    grace = "terminationGracePeriodSeconds"
    if after["spec"].get(grace) != before["spec"].get(grace):
        yield f"{AT}.spec.{grace}: spec.drain.timeout sets it"
    for kind in (kind for kind in ("initContainers", "containers") if kind in before["spec"]):
        theirs = {container["name"]: container for container in after["spec"][kind]}
        for container in before["spec"][kind]:
            name = container["name"]
            yield from _container_changed(container, theirs[name], f"{AT}.spec.{kind}[{name}]")


def _container_changed(before: Manifest, after: Manifest, path: str) -> Iterator[str]:
    for part, how in HOW_ELSE.items():
        kept = before.get(part)
        if part == "ports" and kept is not None:
            same = all(port in after["ports"] for port in kept)
        else:
            same = kept is None or after.get(part) == kept
        if not same:
            yield f"{path}.{part}: {how}"
    for name, count in before.get("resources", {}).get("limits", {}).items():
        if after["resources"]["limits"].get(name) != count:
            yield f"{path}.resources.limits.{name}: spec.accelerator sets it"
