"""Roll-outs on a real cluster: a bad revision gives way by itself, and one GPU is enough to roll."""

import time
from typing import Any

import checks
import yaml
from fakes.resources import good
from target import NAMESPACE

__all__ = ["ROLLOUTS"]

GPU = "nvidia.com/gpu"


def bad_revision_is_rolled_back(world: checks.World) -> None:
    """a bad revision of two replicas: rolled back by itself, Available throughout, no old engine touched; an edit goes forward"""
    name = "rolling"
    _apply(world, name, replicas=2)
    _wait_ready(world, name)
    before = _engines(world, name)
    quick = {"rollout": {"progressDeadline": "20s"}, "health": {"startupTimeout": "15s"}}
    _apply(world, name, replicas=2, source="file:///nowhere", **quick)
    deadline = time.monotonic() + 120
    while checks.reason(world, name, "Stalled") != "RolledBack":
        assert checks.reason(world, name, "Available") == "EnginesServe"
        assert time.monotonic() < deadline, world.get("llmd", name)["status"]
        time.sleep(0.5)
    message = _condition(world, name, "Stalled")["message"]
    assert "ModelNotFound" in message, message
    assert "no model at /nowhere" in message, message
    world.eventually("only the old engines are left", lambda: _engines(world, name) == before, 60)
    time.sleep(25)  # longer than the deadline: a second attempt would show
    assert _engines(world, name) == before
    assert checks.reason(world, name, "Available") == "EnginesServe"
    assert checks.ask(world, "Hello!", f"{name}.{NAMESPACE}.svc.cluster.local")[0] > 1

    _apply(world, name, replicas=2, slots=16)
    _wait_ready(world, name)
    assert _condition(world, name, "Stalled") == {}
    world.eventually("only new engines are left", lambda: not before & _engines(world, name), 60)
    world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{name}", "--timeout=60s")


def one_gpu_is_enough_to_roll(world: checks.World) -> None:
    """one GPU: an edit finds no place for 30 s, then the old engine goes first, and says so"""
    name, node = "lonely", world.tools.kubectl("get", "nodes", "-o", "name").stdout.split()[0]
    _set_gpus(world, node, '"op": "add"', ', "value": "1"')
    # Every container gets a GPU by default: the engine of the CPU becomes one that needs what there is one of.
    limits = {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "one-gpu-each", "namespace": NAMESPACE},
        "spec": {"limits": [{"type": "Container", "default": {GPU: "1"}, "defaultRequest": {GPU: "1"}}]},
    }
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(limits))
    _apply(world, name, replicas=1)
    _wait_ready(world, name)
    before, began = _engines(world, name), time.monotonic()
    _apply(world, name, replicas=1, slots=16)
    world.eventually("no place", lambda: checks.reason(world, name, "Reconciling") == "Unschedulable", 30)
    assert f"Insufficient {GPU}" in _condition(world, name, "Reconciling")["message"]
    assert checks.reason(world, name, "Available") == "EnginesServe"
    world.eventually("it makes room", lambda: checks.reason(world, name, "Progressing") == "TerminatingFirst", 60)
    assert time.monotonic() - began >= 29, "it did not wait for room"
    _wait_ready(world, name)
    world.eventually("only the new engine is left", lambda: not before & _engines(world, name), 60)
    world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{name}", "limitrange/one-gpu-each", "--timeout=60s")
    _set_gpus(world, node, '"op": "remove"', "")


def _apply(world: checks.World, name: str, *, replicas: int, source: str = "", slots: int = 8, **spec: Any) -> None:
    manifest = good(
        metadata__name=name,
        metadata__namespace=NAMESPACE,
        spec__replicas=replicas,
        spec__engine={"maxNumSeqs": slots, "kvCacheGiB": 0.05},
        spec__model__source__uri=source or "builtin://quire-tiny",
        **{f"spec__{field}": value for field, value in spec.items()},
    )
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))


def _wait_ready(world: checks.World, name: str) -> None:
    """Of the spec as it was applied last."""
    generation = world.get("llmd", name)["metadata"]["generation"]

    def holds() -> bool:
        ready = _condition(world, name, "Ready")
        return (ready.get("status"), ready.get("observedGeneration")) == ("True", generation)

    world.eventually(f"{name} is ready", holds, 240)


def _condition(world: checks.World, name: str, kind: str) -> dict[str, Any]:
    conditions = world.get("llmd", name).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def _engines(world: checks.World, name: str) -> set[str]:
    """Those that are ending included."""
    return {pod["metadata"]["uid"] for pod in world.get("pods", "-l", f"quire.dev/llmdeployment={name}")["items"]}


def _set_gpus(world: checks.World, node: str, operation: str, value: str) -> None:
    paths = [f"/status/{part}/{GPU.replace('/', '~1')}" for part in ("capacity", "allocatable")]
    patch = ", ".join(f'{{{operation}, "path": "{path}"{value}}}' for path in paths)
    world.tools.kubectl("patch", node, "--subresource=status", "--type=json", f"--patch=[{patch}]")


ROLLOUTS = (bad_revision_is_rolled_back, one_gpu_is_enough_to_roll)
