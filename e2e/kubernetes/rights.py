"""The operator's rights are those that it uses: the chart's roles against the API server's audit log of the whole run.

A right that no check provokes stands in `UNPROVOKED` with its reason; whoever adds a right adds a check or a line here.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks import World
from target import RELEASE, SYSTEM

__all__ = ["rights_are_those_that_are_used"]

Right = tuple[str, str, str]  # group, resource, verb

OPERATOR = f"{RELEASE}-operator"
APPLIED: dict[str, tuple[str, ...]] = {
    "": ("services", "serviceaccounts"),
    "apps": ("controllerrevisions",),
    "batch": ("jobs",),
    "networking.k8s.io": ("networkpolicies",),
    "policy": ("poddisruptionbudgets",),
    "autoscaling": ("horizontalpodautoscalers",),
}
UNPROVOKED: dict[Right, str] = {
    **{
        (
            group,
            resource,
            "create",
        ): "server-side apply of what is not there yet is checked as create, and logged as patch"
        for group, resources in APPLIED.items()
        for resource in resources
    },
    **{
        (group, resource, "delete"): "what a later version no longer makes, it deletes"
        for group, resource in (
            ("", "services"),
            ("", "serviceaccounts"),
            ("apps", "deployments"),
            ("networking.k8s.io", "networkpolicies"),
        )
    },
    **{
        (
            "leaderworkerset.x-k8s.io",
            resource,
            verb,
        ): "engines on several nodes: the kind is there, and nobody makes pods of it"
        for resource, verbs in (
            ("leaderworkersets", ("get", "create", "patch")),
            ("leaderworkersets/scale", ("patch",)),
        )
        for verb in verbs
    },
    ("", "pods", "patch"): "the deletion cost of the pods, before the autoscaler takes some",
}


def rights_are_those_that_are_used(world: World, audit_log: Path) -> None:
    """RBAC: what the operator asked for in all of this is the chart's roles, no more and no less"""
    used = dict(_asked(audit_log))
    roles = (("clusterrole", OPERATOR), ("role", "-n", SYSTEM, f"{OPERATOR}-lease"))
    allowed = {
        right
        for role in roles
        for right in _allowed(json.loads(world.tools.kubectl("get", *role, "-o", "json").stdout))
    }
    denied = sorted(right for right, code in used.items() if code == 403)
    assert not denied, f"asked for and denied: {denied}"
    assert used, f"nothing of {OPERATOR} in {audit_log}"
    idle = sorted(allowed - set(used) - set(UNPROVOKED))
    assert not idle, f"never used: take them out of the role, or say why in UNPROVOKED: {idle}"
    stale = sorted(set(UNPROVOKED) - allowed)
    assert not stale, f"not in the role any more: {stale}"


def _asked(audit_log: Path) -> Iterator[tuple[Right, int]]:
    """A denial, if there was one, is what counts: it comes last."""
    found: list[tuple[Right, int]] = []
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        what = event.get("objectRef")
        if what is None or event["user"]["username"] != f"system:serviceaccount:{SYSTEM}:{OPERATOR}":
            continue
        resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
        found.append(
            ((what.get("apiGroup", ""), resource, event["verb"]), event.get("responseStatus", {}).get("code", 0))
        )
    yield from sorted(found, key=lambda each: each[1] == 403)


def _allowed(role: dict[str, Any]) -> Iterator[Right]:
    for rule in role["rules"]:
        for group in rule.get("apiGroups", ()):
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb
