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

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire-e2e"
BINARIES = CACHE / f"kubernetes-{KUBERNETES}-helm-{HELM}-coredns-{COREDNS}"

NODE_ADDRESS = "10.99.0.1"
POD_RANGE = "10.88.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
API_PORT = 6443


@dataclass(frozen=True)
class Layout:
    name: str

    @property
    def folder(self) -> Path:
        """Data, configuration, logs."""
        return CACHE / "clusters" / self.name

    @property
    def run(self) -> Path:
        """Sockets and mounts; the paths must be short."""
        return Path("/run") / f"quire-e2e-{self.name}"

    @property
    def namespace(self) -> str:
        """Of the network."""
        return f"quire-e2e-{self.name}"

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
