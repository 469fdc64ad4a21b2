"""containerd and kubelet, and on the first node kube-proxy and DNS: a node, with real pods."""

import contextlib
import json
import subprocess
from pathlib import Path

from layout import BINARIES, CACHE, DNS_SERVICE, NODE_ADDRESS, POD_RANGE, Layout
from processes import start, wait_until

KERNEL_SETTINGS = ("kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory")
SAVED_SETTINGS = CACHE / "kernel-settings.json"
PAUSE_IMAGE = "docker.io/quire-e2e/pause:1"

_CONTAINERD = """\
version = 2
root = "{folder}/containerd"
state = "{run}/containerd"
[grpc]
  address = "{run}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{folder}/cni"
"""

_KUBELET = """\
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
failSwapOn: false
localStorageCapacityIsolation: false
featureGates: {{KubeletInUserNamespace: true}}
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {cluster}/pki/ca.crt}}}}
authorization: {{mode: Webhook}}
clusterDNS: [{dns}]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix://{run}/containerd.sock
podLogsDir: {folder}/pod-logs
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: "50Mi"}}
serializeImagePulls: false
"""

_PROXY = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: {pods}
hostnameOverride: node0
clientConnection: {{kubeconfig: {folder}/kube-proxy.kubeconfig}}
conntrack: {{maxPerCore: 0, min: 0}}
"""

_COREFILE = """\
cluster.local:53 {{
    bind {node}
    errors
    kubernetes cluster.local {{
        kubeconfig {folder}/coredns.kubeconfig e2e
    }}
}}
"""

_DNS_SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {dns}
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
endpoints: [{{addresses: [{node}], conditions: {{ready: true}}}}]
"""


def start_containerd(layout: Layout) -> None:
    folder = layout.folder
    (folder / "containerd.toml").write_text(_CONTAINERD.format(folder=folder, run=layout.run, pause=PAUSE_IMAGE))
    network = {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": True,
                "ipMasq": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": f"{layout.run}/cni",
                    "ranges": [[{"subnet": layout.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    (folder / "cni").mkdir(exist_ok=True)
    (folder / "cni" / "10-pods.conflist").write_text(json.dumps(network))
    start(layout, "containerd", ["/usr/bin/containerd", f"--config={folder / 'containerd.toml'}"])
    wait_until("containerd", lambda: _ctr(layout, "version").returncode == 0, 30, folder / "logs" / "containerd.log")


def start_node(layout: Layout) -> None:
    folder = layout.folder
    start_kubelet(layout)
    values = {"folder": folder, "dns": DNS_SERVICE, "node": NODE_ADDRESS, "pods": POD_RANGE}
    (folder / "kube-proxy.yaml").write_text(_PROXY.format(**values))
    start(layout, "kube-proxy", [str(BINARIES / "kube-proxy"), f"--config={folder / 'kube-proxy.yaml'}"])
    (folder / "Corefile").write_text(_COREFILE.format(**values))
    start(layout, "coredns", [str(BINARIES / "coredns"), "-conf", str(folder / "Corefile")])
    kubectl(layout, "apply", "-f", "-", stdin=_DNS_SERVICE.format(**values))
    wait_until("the node", lambda: node_ready(layout), 60, folder / "logs" / "kubelet.log")


def start_kubelet(layout: Layout, *flags: str) -> None:
    folder = layout.folder
    values = {"folder": folder, "cluster": layout.first.folder, "run": layout.run, "dns": DNS_SERVICE}
    (folder / "kubelet.yaml").write_text(_KUBELET.format(**values))
    start(
        layout,
        "kubelet",
        [
            str(BINARIES / "kubelet"),
            f"--config={folder / 'kubelet.yaml'}",
            f"--kubeconfig={layout.first.folder / f'kubelet-{layout.node_name}.kubeconfig'}",
            f"--root-dir={folder / 'kubelet'}",
            f"--hostname-override={layout.node_name}",
            f"--node-ip={layout.address}",
            f"--cert-dir={folder / 'kubelet-pki'}",
            *flags,
        ],
    )


def save_kernel_settings() -> None:
    """kubelet sets these for the whole machine; the first cluster remembers what they were."""
    if not SAVED_SETTINGS.exists():
        SAVED_SETTINGS.write_text(
            json.dumps({name: Path("/proc/sys", name).read_text().strip() for name in KERNEL_SETTINGS})
        )


def restore_kernel_settings(layout: Layout) -> None:
    """By the last cluster to go; with it goes the socket that kubelet keeps at a place of its own."""
    others = [c for c in layout.folder.parent.iterdir() if c != layout.folder] if layout.folder.parent.exists() else []
    if others or not SAVED_SETTINGS.exists():
        return
    for name, value in json.loads(SAVED_SETTINGS.read_text()).items():
        Path("/proc/sys", name).write_text(value)
    SAVED_SETTINGS.unlink()
    Path("/var/lib/kubelet/device-plugins/kubelet.sock").unlink(missing_ok=True)


def kubectl(layout: Layout, *arguments: str, stdin: str | None = None) -> str:
    command = [*layout.first.inside, str(BINARIES / "kubectl"), f"--kubeconfig={layout.first.kubeconfig}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def remove_pods(layout: Layout) -> None:
    """End every container, through containerd, while it still runs; then what pods leave outside of our folders."""
    if not layout.containerd_socket.exists():
        return
    networks = _pod_networks(layout)
    for task in _ctr(layout, "tasks", "list", "-q").stdout.split():
        _ctr(layout, "tasks", "kill", "--signal=SIGKILL", "--all", task)
    for task in _ctr(layout, "tasks", "list", "-q").stdout.split():
        _ctr(layout, "tasks", "delete", "--force", task)
    for container in _ctr(layout, "containers", "list", "-q").stdout.split():
        _ctr(layout, "containers", "delete", container)
        for result in Path("/var/lib/cni/results").glob(f"*{container}*"):
            result.unlink()
    for network in networks:
        subprocess.run(["ip", "netns", "delete", network], capture_output=True)
    for controller in Path("/sys/fs/cgroup").glob("*/k8s.io"):
        with contextlib.suppress(OSError):  # another cluster's containers are in it
            controller.rmdir()


def _pod_networks(layout: Layout) -> set[str]:
    """Names of the network namespaces which containerd made for pods."""
    found = set()
    for container in _ctr(layout, "containers", "list", "-q").stdout.split():
        spec = json.loads(_ctr(layout, "containers", "info", container).stdout)["Spec"]
        paths = [n["path"] for n in spec["linux"]["namespaces"] if n["type"] == "network" and n.get("path")]
        found |= {Path(path).name for path in paths if "/netns/cni-" in path}
    return found


def _ctr(layout: Layout, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["/usr/bin/ctr", f"--address={layout.containerd_socket}", "--namespace=k8s.io", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def node_ready(layout: Layout) -> bool:
    """As the API server knows it."""
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    cluster = layout.first
    command = [
        *cluster.inside,
        str(BINARIES / "kubectl"),
        f"--kubeconfig={cluster.kubeconfig}",
        "get",
        "node",
        layout.node_name,
        "-o",
        path,
    ]
    return subprocess.run(command, capture_output=True, text=True).stdout == "True"
