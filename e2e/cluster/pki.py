"""The certificates and tokens of one cluster."""

import secrets
import subprocess
from pathlib import Path

from layout import API_PORT, API_SERVICE, NODE_ADDRESS, Layout

USERS = {  # kubeconfig -> user, groups
    "admin": ("quire-e2e", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "kubelet-node0": ("system:node:node0", "system:nodes"),
    "kubelet-node1": ("system:node:node1", "system:nodes"),
    "kube-proxy": ("system:kube-proxy", ""),
    "coredns": ("quire-e2e-dns", "system:masters"),
}

_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: e2e, cluster: {{server: "https://{address}:{port}", certificate-authority: {ca}}}}}]
users: [{{name: user, user: {{token: {token}}}}}]
contexts: [{{name: e2e, context: {{cluster: e2e, user: user}}}}]
current-context: e2e
"""


def make_pki(layout: Layout) -> Path:
    """Write everything below `folder/pki` and the kubeconfigs beside it; the folder."""
    pki = layout.folder / "pki"
    pki.mkdir(parents=True)
    _openssl(pki, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=quire-e2e")
    names = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,DNS:localhost"
    _certificate(pki, "apiserver", "/CN=kube-apiserver", f"{names},IP:{API_SERVICE},IP:{NODE_ADDRESS},IP:127.0.0.1")
    _certificate(pki, "kubelet-client", "/O=system:masters/CN=kube-apiserver", "DNS:kube-apiserver")
    _openssl(pki, "genrsa -out sa.key 2048")
    _openssl(pki, "rsa -in sa.key -pubout -out sa.pub")
    lines = []
    for number, (name, (user, groups)) in enumerate(USERS.items()):
        token = secrets.token_hex(16)
        lines.append(f'{token},{user},{number},"{groups}"')
        text = _KUBECONFIG.format(address=NODE_ADDRESS, port=API_PORT, ca=pki / "ca.crt", token=token)
        (layout.folder / f"{name}.kubeconfig").write_text(text)
    (pki / "tokens.csv").write_text("\n".join(lines) + "\n")
    return pki


def _certificate(pki: Path, name: str, subject: str, alternatives: str) -> None:
    (pki / f"{name}.ext").write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth,clientAuth\n")
    _openssl(pki, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj {subject}")
    _openssl(
        pki,
        f"x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext -out {name}.crt",
    )


def _openssl(pki: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=pki, check=True, capture_output=True)
