"""Where things are: what is built once and cached by version, and what belongs to one cluster.

Nothing lies in the repository. A cluster owns its folder, its run folder and its network namespace, all under
its name, so that several can run side by side and each can be taken away without a trace.
"""

import os
from dataclasses import dataclass
from pathlib import Path

KUBERNETES = "v1.34.4"
HELM = "v3.19.5"
COREDNS = "v1.13.1"
KWOK = "v0.7.0"
LEADER_WORKER_SET = "v0.7.0"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire-e2e"
BINARIES = CACHE / f"kubernetes-{KUBERNETES}-helm-{HELM}-coredns-{COREDNS}"

NODE_ADDRESS = "10.99.0.1"  # of the first node, where the control plane is
POD_RANGE = "10.88.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443


@dataclass(frozen=True)
class Layout:
    """Of a cluster, and of its first node; of another node by its number, which lies within."""

    name: str
    node: int = 0

    @property
    def first(self) -> "Layout":
        return Layout(self.name)

    @property
    def folder(self) -> Path:
        """Data, configuration, logs."""
        cluster = CACHE / "clusters" / self.name
        return cluster / self.node_name if self.node else cluster

    @property
    def run(self) -> Path:
        """Sockets and mounts; the paths must be short."""
        cluster = Path("/run") / f"quire-e2e-{self.name}"
        return cluster / self.node_name if self.node else cluster

    @property
    def namespace(self) -> str:
        """Of the network."""
        return f"quire-e2e-{self.name}" + (f"-{self.node_name}" if self.node else "")

    @property
    def node_name(self) -> str:
        return f"node{self.node}"

    @property
    def address(self) -> str:
        return f"10.99.0.{self.node + 1}"

    @property
    def pods(self) -> str:
        """The part of the range that its pods have."""
        return f"10.88.{128 * self.node}.0/17"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """What was asked of the API server, and by whom (audit.yaml)."""
        return self.folder / "audit.log"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def inside(self) -> list[str]:
        """The words before a command that is to run in the cluster's network.

        nsenter, not `ip netns exec`: the latter mounts a fresh /sys, which hides the cgroups from kubelet.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace}"]
