"""What must hold wherever Quire runs: the same scenarios on the local backend and on a cluster.

Each is a function of the world; its docstring is its line in the table. They share one world: the resource `same` lives
from `apply` to `delete`.
"""

import copy
import signal
from typing import Any

from world import World, condition, eventually

__all__ = ["SCENARIOS"]

NAME, MODEL = "same", "same-model"
GREETING = "Hello! I am quire-tiny, the small model that ships with Quire. How can I help you?"
PATIENCE_S = 240.0
STREAMS = 200

RESOURCE: dict[str, Any] = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": NAME},
    "spec": {
        "model": {"name": MODEL, "source": {"uri": "builtin://quire-tiny"}},
        "accelerator": {"profile": "cpu"},
        "engine": {"maxNumSeqs": 64, "kvCacheGiB": 0.1},
        "drain": {"timeout": "120s"},
    },
}


def edited(**changes: Any) -> dict[str, Any]:
    resource = copy.deepcopy(RESOURCE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = resource["spec"]
        for step in parents:
            node = node[step]
        node[last] = value
    return resource


def serves(world: World, replicas: int) -> bool:
    """As many as wanted, all of the wanted revision, and none besides."""
    status = (world.resource(NAME) or {}).get("status", {})
    right = status.get("serving") == f"{replicas}/{replicas}" and len(world.engines(NAME)) == replicas
    return right and condition(world, NAME, "Ready").get("status") == "True"


def applied(world: World) -> None:
    """apply: Ready, and it answers"""
    world.apply(RESOURCE)
    eventually("one engine serves", lambda: serves(world, 1), PATIENCE_S)
    assert world.answer(MODEL, "Hello!") == GREETING


def crashed(world: World) -> None:
    """crash: an engine killed with -9 is started again, and answers"""
    world.signal(NAME, signal.SIGKILL)
    eventually("it is seen", lambda: not serves(world, 1), PATIENCE_S)
    eventually("it is back", lambda: serves(world, 1), PATIENCE_S)
    assert world.answer(MODEL, "Hello!") == GREETING


def hung(world: World) -> None:
    """hang: an engine that is stopped is found out, started again, and answers"""
    world.signal(NAME, signal.SIGSTOP)
    eventually("it is seen", lambda: not serves(world, 1), PATIENCE_S)
    eventually("it is back", lambda: serves(world, 1), PATIENCE_S)
    assert world.answer(MODEL, "Hello!") == GREETING


def scaled(world: World) -> None:
    """scale: 1 to 4, then 4 to 1 under 200 streams: none breaks"""
    world.scale(NAME, 4)
    eventually("four engines serve", lambda: serves(world, 4), PATIENCE_S)
    streams = world.stream(MODEL, STREAMS)
    eventually("every stream has begun", streams.begun, PATIENCE_S)
    world.scale(NAME, 1)
    eventually("one engine serves", lambda: serves(world, 1), PATIENCE_S)
    broken = streams.finish()
    assert not broken, f"{len(broken)} broken: {broken[:3]}"


def edited_under_load(world: World) -> None:
    """edit: another engine takes the place of the old one under 200 streams: none breaks"""
    before = world.engines(NAME)
    streams = world.stream(MODEL, STREAMS)
    eventually("every stream has begun", streams.begun, PATIENCE_S)
    world.apply(edited(engine__maxNumSeqs=32))
    eventually("a new engine alone serves", lambda: serves(world, 1) and world.engines(NAME) != before, PATIENCE_S)
    broken = streams.finish()
    assert not broken, f"{len(broken)} broken: {broken[:3]}"


def edited_badly(world: World) -> None:
    """bad edit: a model that is not there is Stalled/ModelNotFound, and the old engine serves on; mended, it goes on"""
    before = world.engines(NAME)
    world.apply(edited(model__source__uri="file:///nowhere"))
    eventually("it is stalled", lambda: condition(world, NAME, "Stalled").get("reason") == "ModelNotFound", PATIENCE_S)
    assert "there is no such folder" in condition(world, NAME, "Stalled")["message"]
    assert set(before) <= set(world.engines(NAME))
    assert world.answer(MODEL, "Hello!") == GREETING
    world.apply(edited(engine__maxNumSeqs=32))
    eventually("one engine serves", lambda: serves(world, 1), PATIENCE_S)


def refused(world: World) -> None:
    """bad spec: what is not valid changes nothing"""
    before = world.engines(NAME)
    said = _refusal(world, edited(engine__maxNumSeqs=0))
    assert "maxNumSeqs" in said, said
    assert world.engines(NAME) == before
    assert world.answer(MODEL, "Hello!") == GREETING


def _refusal(world: World, resource: dict[str, Any]) -> str:
    try:
        world.apply(resource)
    except AssertionError as error:
        return str(error)
    return "it was taken"


def divided(world: World) -> None:
    """ranks: an engine of two ranks takes the place of one of one, and answers; then the other way round"""
    _becomes(world, ranks=2)
    _becomes(world, ranks=1)


def _becomes(world: World, ranks: int) -> None:
    before = world.engines(NAME)
    world.apply(edited(engine__maxNumSeqs=32, parallelism={"tensor": ranks}))
    eventually("a new engine alone serves", lambda: serves(world, 1) and world.engines(NAME) != before, PATIENCE_S)
    assert world.answer(MODEL, "Hello!") == GREETING


def scaled_to_zero(world: World) -> None:
    """zero: scaled to 0 nothing runs, and it says so; scaled to 1 it serves again"""
    world.scale(NAME, 0)
    eventually("no engine", lambda: not world.engines(NAME), PATIENCE_S)
    eventually("it says so", lambda: condition(world, NAME, "Ready").get("reason") == "ScaledToZero", PATIENCE_S)
    world.scale(NAME, 1)
    eventually("one engine serves", lambda: serves(world, 1), PATIENCE_S)


def drained_and_deleted(world: World) -> None:
    """delete under streams: those that had begun complete, then nothing is left"""
    streams = world.stream(MODEL, 20)
    eventually("every stream has begun", streams.begun, PATIENCE_S)
    broken = streams.finish()
    world.delete(NAME)
    eventually("it is gone", lambda: world.resource(NAME) is None and not world.engines(NAME), PATIENCE_S)
    assert not broken, broken[:3]


SCENARIOS = (
    applied,
    crashed,
    hung,
    scaled,
    edited_under_load,
    edited_badly,
    refused,
    divided,
    scaled_to_zero,
    drained_and_deleted,
)
