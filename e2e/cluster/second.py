"""A second node: containerd and kubelet in a network namespace of their own, so that a node can be lost.

    node0's bridge --veth--> node1     cut, and everybody behind it is gone at once, without a word

It has no kube-proxy: its pods reach pods and nodes, and no Service. A taint keeps away what does not tolerate it.
"""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from images import import_image, import_pause_image
from layout import NODE_ADDRESS, Layout
from node import node_ready, remove_pods, start_containerd, start_kubelet
from processes import stop, wait_until

__all__ = ["TAINT", "add_node", "lose_node", "remove_node", "return_node", "second"]

TAINT = "quire.dev/e2e-second"
LINK = "to-node1"
BLOBS = Path("containerd/io.containerd.content.v1.content/blobs/sha256")


def second(cluster: Layout) -> Layout:
    return Layout(cluster.name, 1)


def add_node(cluster: Layout, archives: Iterable[Path]) -> None:
    """With the images of these archives, which the first node has, too."""
    node = second(cluster)
    node.folder.mkdir()
    node.run.mkdir()
    _make_network(cluster, node)
    start_containerd(node)
    import_pause_image(node)
    for archive in archives:
        import_image(node, archive)
    _share_blobs(cluster, node)
    _start_kubelet(node)


def lose_node(cluster: Layout) -> None:
    """As when its power fails: no packet comes out any more, and nothing of it runs."""
    node = second(cluster)
    _run(cluster, f"ip link set {LINK} down")
    stop(node, "kubelet")
    remove_pods(node)
    stop(node, "containerd")


def return_node(cluster: Layout) -> None:
    """Started again; it knows of no pod but what the API server says."""
    node = second(cluster)
    _run(cluster, f"ip link set {LINK} up")
    start_containerd(node)
    _start_kubelet(node)


def remove_node(cluster: Layout) -> None:
    """Works on one that is half there, and on one that is not; files and mounts go with those of the cluster."""
    node = second(cluster)
    stop(node, "kubelet")
    remove_pods(node)
    stop(node)
    subprocess.run(["ip", "netns", "delete", node.namespace], capture_output=True)


def _start_kubelet(node: Layout) -> None:
    start_kubelet(node, f"--register-with-taints={TAINT}=:NoSchedule")
    wait_until("the second node", lambda: node_ready(node), 90, node.folder / "logs" / "kubelet.log")


def _make_network(cluster: Layout, node: Layout) -> None:
    subprocess.run(["ip", "netns", "add", node.namespace], check=True)
    for command in (
        f"ip link add {LINK} type veth peer name eth0 netns {node.namespace}",
        f"ip link set {LINK} master node0",
        f"ip link set {LINK} up",
        f"ip route add {node.pods} via {node.address}",
    ):
        _run(cluster, command)
    for command in (
        "ip link set lo up",
        f"ip address add {node.address}/24 dev eth0",
        "ip link set eth0 up",
        f"ip route add default via {NODE_ADDRESS}",
        "sysctl -q -w net.ipv4.ip_forward=1",
    ):
        _run(node, command)


def _share_blobs(cluster: Layout, node: Layout) -> None:
    """An image's bytes never change: both nodes have them, and the disk has them once."""
    for theirs in (node.folder / BLOBS).iterdir():
        ours = cluster.folder / BLOBS / theirs.name
        if ours.exists():
            link = theirs.with_name(f"{theirs.name}.link")
            os.link(ours, link)
            link.replace(theirs)


def _run(node: Layout, command: str) -> None:
    subprocess.run([*node.inside, *command.split()], check=True)
