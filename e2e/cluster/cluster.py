#!/usr/bin/env python3
"""A real Kubernetes on this machine, without Docker: control plane and one node, in a network of its own.

    e2e/cluster/cluster.py up [NAME]      about 15 seconds, once its programs are built and cached
    e2e/cluster/cluster.py down [NAME]    no process, mount, interface or file is left
    e2e/cluster/cluster.py kubectl [NAME] -- get pods

Needs root, Linux and the packages of `scripts/system-packages.sh e2e`. Clusters of different names do not
see each other. docs/decisions/0004-a-cluster-without-docker.md says why it is built this way.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from binaries import ensure_binaries
from control_plane import start_control_plane
from images import import_pause_image
from layout import BINARIES, NODE_ADDRESS, Layout
from node import remove_pods, restore_kernel_settings, save_kernel_settings, start_containerd, start_node
from pki import make_pki
from processes import stop
from second import remove_node, second


def up(layout: Layout, *, node: bool = True) -> None:
    """Without `node` a control plane alone: somebody else plays the nodes."""
    if os.geteuid() != 0:
        raise SystemExit("a cluster needs root: it makes a network namespace and mounts")
    if layout.folder.exists():
        raise SystemExit(f"cluster {layout.name} exists: `cluster.py down {layout.name}` first")
    ensure_binaries()
    started = time.monotonic()
    layout.folder.mkdir(parents=True)
    layout.run.mkdir(parents=True)
    try:
        _make_network(layout)
        pki = make_pki(layout)
        if node:
            start_containerd(layout)
        start_control_plane(layout, pki, played=not node)
        if node:
            import_pause_image(layout)
            save_kernel_settings()
            start_node(layout)
    except BaseException:
        down(layout)
        raise
    print(f"cluster {layout.name} is up after {time.monotonic() - started:.0f} s")


def down(layout: Layout) -> None:
    """kubelet first, which would start pods anew; then pods, processes, mounts, network, files, kernel settings.

    Works on a half-built cluster too.
    """
    remove_node(layout)
    stop(layout, "kubelet")
    remove_pods(layout)
    stop(layout)
    _kill_inside(layout)
    _unmount(layout)
    subprocess.run(["ip", "netns", "delete", layout.namespace], capture_output=True)
    restore_kernel_settings(layout)
    for folder in (layout.run, layout.folder):
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise SystemExit(f"{folder} could not be removed; is something still using it?")


def left_over(layout: Layout) -> list[str]:
    """What a `down` should have taken away and did not."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if _ours(layout, line.split()[1])]
    names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    ours = (layout.namespace, second(layout).namespace)
    paths = [str(path) for path in (layout.folder, layout.run) if path.exists()]
    return mounts + paths + [f"network namespace {n}" for n in names if n in ours] + _processes(layout)


def _make_network(layout: Layout) -> None:
    """A bridge carries the node's address; it is the default route, so that packets to Services have a way out."""
    subprocess.run(["ip", "netns", "add", layout.namespace], check=True)
    commands = [
        "ip link set lo up",
        "ip link add node0 type bridge",
        f"ip address add {NODE_ADDRESS}/24 dev node0",
        "ip link set node0 up",
        f"ip route add default via {NODE_ADDRESS} dev node0",
        "sysctl -q -w net.ipv4.ip_forward=1",
    ]
    for command in commands:
        subprocess.run([*layout.inside, *command.split()], check=True)


def _unmount(layout: Layout) -> None:
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted((m for m in mounts if _ours(layout, m)), reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)


def _ours(layout: Layout, path: str) -> bool:
    return any(path.startswith(f"{folder}/") for folder in (layout.folder, layout.run))


def _processes(layout: Layout) -> list[str]:
    """Processes of this cluster: their command names its folders, as all of them do, shims included."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{layout.folder}/" in command or f"{layout.run}/" in command:
            found.append(f"process {entry.name}: {command[:120]}")
    return found


def _kill_inside(layout: Layout) -> None:
    """Shims whose containerd was gone before it could end them."""
    for line in _processes(layout):
        if "containerd-shim" in line:
            subprocess.run(["kill", "-9", line.split()[1].rstrip(":")], capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "up", "down", "kubectl"])
    parser.add_argument("name", nargs="?", default="dev")
    arguments, rest = parser.parse_known_args()
    layout = Layout(arguments.name)
    match arguments.command:
        case "build":
            ensure_binaries()
        case "up":
            up(layout)
            print(f"kubectl: {Path(__file__).name} kubectl {layout.name} -- get nodes")
        case "down":
            down(layout)
            if left := left_over(layout):
                raise SystemExit("left over:\n" + "\n".join(left))
            print(f"cluster {layout.name} is gone")
        case "kubectl":
            command = [
                str(BINARIES / "kubectl"),
                f"--kubeconfig={layout.kubeconfig}",
                *[word for word in rest if word != "--"],
            ]
            sys.exit(subprocess.run([*layout.inside, *command]).returncode)


if __name__ == "__main__":
    main()
