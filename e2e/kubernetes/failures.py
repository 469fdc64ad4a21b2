"""Failures of an edit on a real cluster: each has its condition, the engine that serves serves on, and what is mended goes on."""

from typing import Any

import checks
import yaml
from checks import ask, reason
from fakes.resources import good
from target import NAMESPACE

__all__ = ["FAILURES"]

NAME = "frail"


def a_missing_image_is_said(world: checks.World) -> None:
    """an image that is not there: Stalled/ImagePullDenied, the old engine serves on; mended, it goes on"""
    _fails(world, "ImagePullDenied", "localhost/nowhere", spec__image="localhost/nowhere/quire-engine:none")


def too_little_memory_is_said(world: checks.World) -> None:
    """an engine that wants more memory than there is: Stalled/OutOfMemory in its own words, the old one serves on; mended, it goes on"""
    _fails(world, "OutOfMemory", "--kv-cache-gib", spec__engine={"maxNumSeqs": 8, "kvCacheGiB": 4096})


def _fails(world: checks.World, why: str, words: str, **changes: Any) -> None:
    _apply(world)
    _wait_ready(world)
    before = _engines(world)
    _apply(world, **changes)
    world.eventually(f"it is {why}", lambda: reason(world, NAME, "Stalled") == why, 90)
    message = next(c for c in world.get("llmd", NAME)["status"]["conditions"] if c["type"] == "Stalled")["message"]
    assert words in message, message
    assert reason(world, NAME, "Available") == "EnginesServe"
    assert before <= _engines(world)
    assert ask(world, "What is an LLMDeployment?", f"{NAME}.{NAMESPACE}.svc.cluster.local")[0] > 5
    _apply(world)
    _wait_ready(world)
    world.eventually("only the engine from before is left", lambda: _engines(world) == before, 60)
    world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{NAME}", "--timeout=60s")
    world.eventually("its pods are gone", lambda: not _engines(world), 60)


def _apply(world: checks.World, **changes: Any) -> None:
    manifest = good(
        metadata__name=NAME,
        metadata__namespace=NAMESPACE,
        **{"spec__model__name": "quire-tiny", "spec__engine": {"maxNumSeqs": 8, "kvCacheGiB": 0.05}, **changes},
    )
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))


def _wait_ready(world: checks.World) -> None:
    world.eventually("it is seen", lambda: _seen(world), 30)
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=120s")
    assert reason(world, NAME, "Stalled") == ""


def _seen(world: checks.World) -> bool:
    resource = world.get("llmd", NAME)
    seen: bool = resource.get("status", {}).get("observedGeneration") == resource["metadata"]["generation"]
    return seen


def _engines(world: checks.World) -> set[str]:
    pods = world.get("pods", "-l", f"quire.dev/llmdeployment={NAME},quire.dev/role=engine")["items"]
    return {pod["metadata"]["uid"] for pod in pods}


FAILURES = (a_missing_image_is_said, too_little_memory_is_said)
