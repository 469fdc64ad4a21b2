"""Two operators and one Lease, and somebody else who applies the same manifest all the time: one writes, and only what must be."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checks import SAMPLE, World, holder, identity, operator_pods, versions
from target import NAMESPACE, RELEASE, SYSTEM

__all__ = ["OPERATORS", "one_wrote_at_a_time"]

OPERATOR = f"{RELEASE}-operator"
POD = "authentication.kubernetes.io/pod-name"  # the API server's word for whose token it was
TAKEN_WITHIN_S = 22.0  # 15 s from when its last renewal was seen, which takes up to 2.4, as the next try does


def others_apply_the_same(world: World) -> None:
    """the same manifest applied every 10 s by another field manager: no new generation, and no child is touched"""
    apply = (
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=gitops",
        "-n",
        NAMESPACE,
        "-f",
        str(SAMPLE),
    )
    world.tools.kubectl(*apply)  # the first one may take fields from who applied before
    world.wait_ready(120)
    time.sleep(3)
    before, generation = versions(world), world.tiny()["metadata"]["generation"]
    for _ in range(3):
        world.tools.kubectl(*apply)
        time.sleep(10)
    assert world.tiny()["metadata"]["generation"] == generation
    assert versions(world) == before


def a_standby_takes_over(world: World) -> None:
    """two operators, the one that works killed -9 while a resource is edited: another goes on within 22 s, to the same end"""
    world.eventually("two are ready", lambda: len(_ready(world)) == 2, 60)
    world.eventually("one works", lambda: holder(world) in _ready(world), TAKEN_WITHIN_S)
    first, started, pod = identity(world), time.monotonic(), holder(world)
    edit = '{"spec":{"model":{"aliases":["after-the-kill"]},"engine":{"maxNumSeqs":24}}}'
    world.tools.kubectl("patch", "-n", NAMESPACE, "llmd/tiny", "--type=merge", f"-p={edit}")
    _kill(world, pod)
    world.eventually(
        "another works", lambda: identity(world) not in ("", first), TAKEN_WITHIN_S
    )  # be it the one that is back
    print(f"   taken over after {time.monotonic() - started:.1f} s", flush=True)
    generation = world.tiny()["metadata"]["generation"]
    world.eventually("the edit is seen", lambda: world.tiny()["status"]["observedGeneration"] == generation, 30)
    world.wait_ready(120)
    world.eventually("only new engines are left", lambda: _slots(world) == {"24"}, 120)
    world.eventually("two are ready again", lambda: len(_ready(world)) == 2, 60)
    _is_at_rest(world)


def operators_are_updated(world: World) -> None:
    """a rolling update of both operators ends, the lease goes from hand to hand, and nothing is written"""
    before, first = versions(world), identity(world)
    started = time.monotonic()
    for what in (("restart",), ("status", "--timeout=120s")):
        world.tools.kubectl("rollout", *what, "-n", SYSTEM, f"deploy/{OPERATOR}")
    world.eventually("a new one works", lambda: identity(world) not in ("", first), TAKEN_WITHIN_S)
    print(f"   updated after {time.monotonic() - started:.1f} s", flush=True)
    time.sleep(5)
    assert versions(world) == before


def one_wrote_at_a_time(world: World, audit_log: Path) -> None:
    """audit log of all of this: no operator wrote anything but while the lease was its own"""
    writers: dict[str, int] = {}
    has_it = ""
    for at, pod, what, code in sorted(_writes(audit_log)):
        if what == "leases":
            has_it = pod if code < 300 else has_it
            continue
        assert pod == has_it, f"{at}: {pod} wrote {what} while {has_it or 'nobody'} had the lease"
        writers[pod] = writers.get(pod, 0) + 1
    assert len(writers) > 2, f"too few operators to show anything: {writers}"
    print(f"   {sum(writers.values())} writes by {len(writers)} operators, one after the other", flush=True)


def _writes(audit_log: Path) -> Iterator[tuple[str, str, str, int]]:
    """When, by which pod, what, and how it ended."""
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        what, user = event.get("objectRef"), event["user"]
        if what is None or user["username"] != f"system:serviceaccount:{SYSTEM}:{OPERATOR}":
            continue
        if event["verb"] in ("create", "update", "patch", "delete"):
            if POD not in user.get("extra", {}):
                continue  # a process of the stage of mode HPA, before the chart is there
            pod, code = user["extra"][POD][0], event.get("responseStatus", {}).get("code", 0)
            yield event["requestReceivedTimestamp"], pod, what["resource"], code


def _ready(world: World) -> set[str]:
    def is_ready(pod: Any) -> bool:
        conditions = pod["status"].get("conditions", [])
        return any((c["type"], c["status"]) == ("Ready", "True") for c in conditions)

    return {pod["metadata"]["name"] for pod in operator_pods(world) if is_ready(pod)}


def _slots(world: World) -> set[str]:
    """`--max-num-seqs` of all engines, those that are ending included."""
    pods = world.get("pods", "-l", "quire.dev/llmdeployment=tiny")["items"]
    flags = (flag for pod in pods for flag in pod["spec"]["containers"][0]["command"])
    return {flag.partition("=")[2] for flag in flags if flag.startswith("--max-num-seqs=")}


def _is_at_rest(world: World) -> None:
    time.sleep(3)
    before = versions(world)
    time.sleep(5)
    assert versions(world) == before


def _kill(world: World, pod: str) -> None:
    """With -9, where its process is one of this machine; elsewhere without grace, which is as near as one comes."""
    marks = {"environ": f"HOSTNAME={pod}", "cmdline": f"--lease={SYSTEM}/{OPERATOR}"}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if all(mark.encode() in (entry / file).read_bytes().split(b"\0") for file, mark in marks.items()):
                os.kill(int(entry.name), signal.SIGKILL)
                return
    world.tools.kubectl("delete", "pod", "-n", SYSTEM, pod, "--grace-period=0", "--force")


OPERATORS = (others_apply_the_same, a_standby_takes_over, operators_are_updated)
