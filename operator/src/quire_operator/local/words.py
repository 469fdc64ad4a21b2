"""Pictures of resources as text: rows of `quire get`, pages of `quire describe` and `quire explain`. Pure.

`describe` says what is, `explain` why it is so and what to do about it.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from quire_operator.local.client import model_names
from quire_operator.local.tables import age, fields, paint, table

__all__ = ["HEADER", "WIDE", "describe", "explain", "row"]

Picture = Mapping[str, Any]

HEADER = ("NAME", "MODEL", "READY", "STATUS", "AGE")
WIDE = (*HEADER, "IN FLIGHT", "HELD", "SOURCE", "MESSAGE")


def row(picture: Picture, now: float, *, wide: bool) -> tuple[str, ...]:
    resource, ready = picture["resource"], _condition(picture, "Ready")
    began = _seconds(ready.get("lastTransitionTime"), now)
    cells = (
        resource["metadata"]["name"],
        model_names(dict(picture))[0],
        resource["status"].get("serving") or f"0/{picture['wanted']}",
        ready.get("reason", "Unknown"),
        age(now - began),
    )
    if not wide:
        return cells
    source = resource["spec"]["model"]["source"]["uri"]
    return (*cells, str(picture["inFlight"]), str(picture["held"]), source, ready.get("message", ""))


def describe(picture: Picture, url: str, now: float, *, colours: bool) -> str:
    resource = picture["resource"]
    spec, status = resource["spec"], resource["status"]
    names = model_names(dict(picture))
    parts = [
        fields(
            [
                ("Name", resource["metadata"]["name"]),
                ("Model", names[0]),
                *([("Aliases", ", ".join(names[1:]))] if names[1:] else []),
                ("Source", spec["model"]["source"]["uri"]),
                ("Profile", spec.get("accelerator", {}).get("profile", "nvidia")),
                ("Endpoint", url),
                ("Replicas", f"{picture['wanted']} wanted (by {picture['replicasFrom']}), {status.get('readyReplicas', 0)} serve"),
                ("Requests", f"{picture['inFlight']} in flight, {picture['held']} held"),
            ],
            colours=colours,
        )
    ]  # fmt: skip
    if options := spec.get("engine"):
        parts.append(
            _titled(
                "Engine options",
                fields([(k, str(v)) for k, v in options.items()], colours=colours, indent="  "),
                colours,
            )
        )
    if conditions := status.get("conditions"):
        rows = [
            (c["type"], c["status"], c["reason"], age(now - _seconds(c.get("lastTransitionTime"), now)), c.get("message", ""))
            for c in conditions
        ]  # fmt: skip
        parts.append(
            _titled(
                "Conditions", table(("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), rows, colours=colours), colours
            )
        )
    if picture["engines"]:
        parts.append(_titled("Engines", _engines(picture["engines"], now, colours), colours))
    return "\n\n".join(parts)


def explain(picture: Picture, reasons: Mapping[str, tuple[str, str]], decisions: Sequence[str] = ()) -> str:
    """`reasons`: word -> what it means, and what to do; `decisions`: lines of planner/explain.py."""
    resource, wanted = picture["resource"], picture["wanted"]
    name, status = resource["metadata"]["name"], resource["status"]
    replicas = "replica is" if wanted == 1 else "replicas are"
    lines = [f"{wanted} {replicas} wanted, because {picture['replicasFrom']} says so."]
    states = [engine["state"] for engine in picture["engines"]]
    counted = ", ".join(f"{states.count(s)} {s}" for s in ("ready", "loading", "failed", "draining") if s in states)
    lines.append(f"There {'is' if len(states) == 1 else 'are'} {counted or 'no engines'}.")
    if picture["held"]:
        lines.append(f"{picture['held']} requests wait for an engine.")
    for condition in status.get("conditions", ()):
        if condition["type"] == "Ready" or (condition["status"] == "True" and condition["type"] != "Available"):
            meaning, fix = reasons.get(condition["reason"], ("", ""))
            lines += [
                "",
                f"{condition['type']} is {condition['status']}: {condition['reason']}. {condition.get('message', '')}",
            ]
            lines += [f"  {meaning}", f"  {fix}"] if condition["type"] == "Ready" and meaning else []
    for engine in picture["engines"]:
        if engine["failure"] and engine["state"] != "ready":
            lines += [
                "",
                f"{engine['name']} ended {_times(engine['restarts'])}, the last time with: {engine['failure']}",
            ]
    lines += ["", *decisions] if decisions else []
    lines += ["", f"next: {_next(name, model_names(dict(picture))[0], status, wanted)}"]
    return "\n".join(lines)


def _next(name: str, model: str, status: Mapping[str, Any], wanted: int) -> str:
    if status.get("readyReplicas"):
        return f"quire chat {model}"
    return f"quire scale {name} --replicas 1" if wanted == 0 else f"quire logs {name}"


def _engines(engines: Sequence[Mapping[str, Any]], now: float, colours: bool) -> str:
    rows = []
    for engine in engines:
        where = f"GPU {','.join(engine['devices'])}" if engine["devices"] else _threads(engine["threads"])
        revision = "" if engine["current"] else "old revision"
        said = "; ".join(filter(None, (revision, engine["failure"] if engine["state"] != "ready" else "")))
        since = age(now - engine["since"]) if engine["since"] else "-"
        rows.append(
            (engine["name"], engine["state"], str(engine["pid"] or "-"), where, str(engine["restarts"]), since, said)
        )
    return table(("NAME", "STATE", "PID", "ON", "RESTARTS", "AGE", "NOTE"), rows, colours=colours)


def _threads(count: str | None) -> str:
    return "CPU" if count is None else f"CPU, {count} thread{'' if count == '1' else 's'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _titled(title: str, text: str, colours: bool) -> str:
    return f"{paint(title, 'bold', on=colours)}\n{text}"


def _condition(picture: Picture, kind: str) -> Mapping[str, Any]:
    found = (c for c in picture["resource"]["status"].get("conditions", ()) if c["type"] == kind)
    return next(found, {})


def _seconds(when: str | None, default: float) -> float:
    return datetime.fromisoformat(when).timestamp() if when else default
