"""The router of the chart: one endpoint before all models, to zero and back, and the built-in autoscaler under load."""

import json
import time
from typing import Any

import checks
import fetching
import yaml
from checks import World, ask
from cluster_world import PodStreams
from fakes.resources import good
from target import NAMESPACE, RELEASE, SYSTEM

__all__ = ["WITH_IMAGES"]

ROUTER = f"{RELEASE}-router.{SYSTEM}.svc.cluster.local"
NAME, MODEL = "elastic", "elastic-model"
ELASTIC = good(
    metadata__name=NAME,
    metadata__namespace=NAMESPACE,
    spec__model__name=MODEL,
    spec__engine={"maxNumSeqs": 2, "kvCacheGiB": 0.05},
    spec__drain={"timeout": "10s"},
    spec__autoscaling={
        "mode": "Builtin", "min": 0, "max": 2,
        "behavior": {"stableWindow": "2s", "panicWindow": "1s", "scaleDownDelay": "3s"},
        "scaleToZero": {"idleAfter": "5s"},
    },
)  # fmt: skip


def chat_through_the_router(world: World) -> None:
    """a streamed chat through the router's Service, whose address is in the status; two routers, one may go"""
    events, text = ask(world, "What is an LLMDeployment?", ROUTER)
    assert events > 5, events
    assert "Kubernetes resource that describes one served model" in text, text
    assert world.tiny()["status"]["url"] == f"http://{ROUTER}/v1", world.tiny()["status"]
    found = world.tools.kubectl("get", "-n", SYSTEM, f"deploy/{RELEASE}-router", f"pdb/{RELEASE}-router", "-o", "json")
    deployment, budget = json.loads(found.stdout)["items"]
    assert deployment["status"]["readyReplicas"] == 2, deployment["status"]
    assert budget["status"]["disruptionsAllowed"] == 1, budget["status"]


def to_zero_and_back(world: World) -> None:
    """a model goes to zero after idleAfter; routers started meanwhile hold a request, one wake brings it back, it is answered"""
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(ELASTIC))
    world.eventually("it goes to zero", lambda: _asleep(world), 120)
    assert "Idle" in _reasons(world), _reasons(world)
    for what in (
        ("restart",),
        ("status", "--timeout=90s"),
    ):  # they drain: an address that is gone is no endpoint any more
        world.tools.kubectl("rollout", *what, "-n", SYSTEM, f"deploy/{RELEASE}-router")
    assert _asleep(world)
    started = time.monotonic()
    events, text = ask(world, "What is an LLMDeployment?", ROUTER, MODEL)
    print(f"   woken and answered within {time.monotonic() - started:.1f} s", flush=True)
    assert events > 5, (events, text)
    why = _reasons(world)
    assert why[why.index("Woken") :][:2] == ["Woken", "Idle"], why


def load_brings_engines_and_its_end_takes_them(world: World) -> None:
    """load brings a second engine, its end takes both, no stream breaks, and the history says why"""
    streams = PodStreams(world, ROUTER, MODEL, 14)
    assert streams.begun()
    world.eventually("there are two engines", lambda: _elastic(world)["status"]["readyReplicas"] == 2, 120)
    up = _reasons(world)[0]
    broken = streams.finish()
    assert not broken, broken
    assert up not in ("Woken", "Idle"), up
    world.eventually("there is none", lambda: _asleep(world), 180)
    assert _reasons(world)[0] in ("Idle", "DemandBelowCapacity"), _reasons(world)
    world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{NAME}", "--timeout=60s")


def _elastic(world: World) -> Any:
    return world.get("llmd", NAME)


def _asleep(world: World) -> bool:
    """None is wanted, and the API server's objects say the same."""
    status = _elastic(world).get("status", {})
    wanted = status.get("autoscaling", {}).get("desired")
    return wanted == 0 and checks.reason(world, NAME, "Ready") == "ScaledToZero"


def _reasons(world: World) -> list[str]:
    """Of the changes, newest first."""
    return [event["reason"] for event in _elastic(world)["status"]["autoscaling"]["history"]]


_AFTER = fetching.WITH_IMAGES.index(checks.chat_through_the_service) + 1
WITH_IMAGES = (
    *fetching.WITH_IMAGES[:_AFTER],
    chat_through_the_router,
    to_zero_and_back,
    load_brings_engines_and_its_end_takes_them,
    *fetching.WITH_IMAGES[_AFTER:],
)
