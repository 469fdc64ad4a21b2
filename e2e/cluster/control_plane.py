"""etcd, API server, controller manager, scheduler."""

import subprocess
from pathlib import Path

from layout import API_PORT, BINARIES, NODE_ADDRESS, POD_RANGE, SERVICE_RANGE, Layout
from processes import start, wait_until

UNBOUND = (
    "--kube-api-qps=1000",
    "--kube-api-burst=2000",
)  # else thousands of pods wait for those who make and place them


PLAYED = ("--node-monitor-grace-period=24h",)  # who plays nodes tells once that they are ready, and renews nothing


def start_control_plane(layout: Layout, pki: Path, *, played: bool = False) -> None:
    """`played`: there is no kubelet, and somebody plays the nodes."""
    folder = layout.folder
    start(
        layout,
        "etcd",
        [
            "/usr/bin/etcd",
            f"--data-dir={folder / 'etcd'}",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--unsafe-no-fsync",  # nothing here outlives a crash of the machine
        ],
    )
    start(
        layout,
        "apiserver",
        [
            str(BINARIES / "kube-apiserver"),
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_ADDRESS}",
            f"--secure-port={API_PORT}",
            f"--tls-cert-file={pki / 'apiserver.crt'}",
            f"--tls-private-key-file={pki / 'apiserver.key'}",
            f"--client-ca-file={pki / 'ca.crt'}",
            f"--token-auth-file={pki / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki / 'sa.pub'}",
            f"--service-account-signing-key-file={pki / 'sa.key'}",
            f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
            f"--kubelet-client-key={pki / 'kubelet-client.key'}",
            f"--audit-policy-file={Path(__file__).with_name('audit.yaml')}",
            f"--audit-log-path={layout.audit_log}",
            "--kubelet-preferred-address-types=InternalIP",  # else logs and exec look up the node's name
        ],
    )
    wait_until("the API server", lambda: _healthy(layout), 60, folder / "logs" / "apiserver.log")
    start(
        layout,
        "controller-manager",
        [
            str(BINARIES / "kube-controller-manager"),
            f"--kubeconfig={folder / 'controller-manager.kubeconfig'}",
            f"--service-account-private-key-file={pki / 'sa.key'}",
            f"--root-ca-file={pki / 'ca.crt'}",
            f"--cluster-signing-cert-file={pki / 'ca.crt'}",
            f"--cluster-signing-key-file={pki / 'ca.key'}",
            "--use-service-account-credentials=true",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_RANGE}",
            "--leader-elect=false",
            "--horizontal-pod-autoscaler-sync-period=3s",  # not 15: checks wait for it
            *UNBOUND,
            *(PLAYED if played else ()),
        ],
    )
    start(
        layout,
        "scheduler",
        [
            str(BINARIES / "kube-scheduler"),
            f"--kubeconfig={folder / 'scheduler.kubeconfig'}",
            "--leader-elect=false",
            *UNBOUND,
        ],
    )


def _healthy(layout: Layout) -> bool:
    command = [
        str(BINARIES / "kubectl"),
        f"--kubeconfig={layout.kubeconfig}",
        "get",
        "--raw=/readyz",
        "--request-timeout=2s",
    ]
    return subprocess.run([*layout.inside, *command], capture_output=True).returncode == 0
