"""A node is lost: on a second one, with a kubelet of its own, of a cluster that was built here."""

from pathlib import Path
from typing import Any

import checks
import yaml
from checks import World
from cluster_world import PodStreams
from fakes.resources import good
from layout import Layout
from second import TAINT, add_node, lose_node, remove_node, return_node, second
from target import NAMESPACE

__all__ = ["a_lost_node_costs_what_was_on_it"]

NAME, STREAMS = "spread", 20
SPREAD = good(
    metadata__name=NAME,
    metadata__namespace=NAMESPACE,
    spec__model__name=NAME,
    spec__replicas=2,
    spec__engine={"maxNumSeqs": 32, "kvCacheGiB": 0.1},
    spec__scheduling={"topologySpread": "node", "tolerations": [{"key": TAINT, "operator": "Exists"}]},
)
UNPACKED_S = 480  # six gigabytes of image, on the new node
NOTICED_S, EVICTED_S, STARTED_S = 120, 180, 240  # a kubelet may be silent for 50 s, and pods tolerate 30 s more


def a_lost_node_costs_what_was_on_it(world: World, cluster: Layout, engine_image: Path) -> None:
    """a node is lost with one of two engines: the status says so, no stream of the other breaks, another comes; the node's return doubles nothing"""
    add_node(cluster, [engine_image])
    try:
        world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(SPREAD))
        world.eventually("two engines serve", lambda: _served(world), UNPACKED_S)
        by_node = {pod["spec"]["nodeName"]: pod for pod in _pods(world)}
        assert set(by_node) == {"node0", "node1"}, "both engines are on one node"
        kept, lost = by_node["node0"], by_node["node1"]
        streams = PodStreams(world, f"{kept['status']['podIP']}:8000", NAME, STREAMS)
        assert streams.begun()

        lose_node(cluster)
        world.eventually("the status says it", lambda: _says_what_is_lost(world), NOTICED_S)
        world.eventually("the lost engine is given up", lambda: _uid(lost) not in _uids(_staying(world)), EVICTED_S)
        world.eventually("another one serves", lambda: _served(world), STARTED_S)
        now = _staying(world)
        assert {pod["spec"]["nodeName"] for pod in now} == {"node0"}, now
        assert _uid(kept) in _uids(now), "the engine that served on was replaced"
        broken = streams.finish()
        assert not broken, broken[:3]

        return_node(cluster)
        world.eventually("what was lost is gone", lambda: _uids(_pods(world)) == _uids(now), 120)
        assert _served(world)
        world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{NAME}", "--timeout=60s")
        world.eventually("no engine is left", lambda: not _pods(world), 120)
    finally:
        remove_node(cluster)
        world.tools.kubectl("delete", "node", second(cluster).node_name, "--ignore-not-found")


def _status(world: World) -> Any:
    return world.get("llmd", NAME).get("status", {})


def _served(world: World) -> bool:
    return bool(_status(world).get("serving") == "2/2") and not checks.reason(world, NAME, "Degraded")


def _says_what_is_lost(world: World) -> bool:
    """One of two, and that requests are answered all the same."""
    status = _status(world)
    said = {c["type"]: (c["status"], c["reason"], c["message"]) for c in status["conditions"]}
    return (
        (status["readyReplicas"], status["serving"]) == (1, "1/2")
        and said.get("Degraded", ("",))[0] == "True"
        and "1 of 2 engines serve" in said["Degraded"][2]
        and said["Available"][0] == said["Ready"][0] == "True"
    )


def _pods(world: World) -> list[Any]:
    """Those that are ending included."""
    items: list[Any] = world.get("pods", "-l", f"quire.dev/llmdeployment={NAME}")["items"]
    return items


def _staying(world: World) -> list[Any]:
    return [pod for pod in _pods(world) if not pod["metadata"].get("deletionTimestamp")]


def _uids(pods: list[Any]) -> set[str]:
    return {_uid(pod) for pod in pods}


def _uid(pod: Any) -> str:
    return str(pod["metadata"]["uid"])
