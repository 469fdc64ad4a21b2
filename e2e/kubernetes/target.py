"""The Kubernetes that the checks run against: the user's own, kind, or the one we build.

E2E_KUBECONFIG set    that cluster; E2E_ENGINE_IMAGE and E2E_OPERATOR_IMAGE name images it can pull
Docker and kind here  a kind cluster, images built by Docker
else                  e2e/cluster: needs root, Go, and the packages of scripts/system-packages.sh e2e
"""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import images
from binaries import ensure_binaries, leader_worker_set_crd
from cluster import down, left_over, up
from layout import BINARIES, Layout

SYSTEM = "quire-e2e-system"  # namespace of the operator
NAMESPACE = "quire-e2e"  # namespace of the models
RELEASE = "quire-e2e"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Images:
    engine: str
    operator: str


class Target(Protocol):
    name: str
    audit_log: Path | None  # of the API server, where it keeps one

    def build(self) -> None:
        """Programs and images; nothing is running yet."""

    def up(self) -> Images:
        """A cluster."""
        ...

    def load(self) -> None:
        """It can run the images from now on."""

    def down(self) -> list[str]:
        """What is left over, which should be nothing."""
        ...

    @property
    def tools(self) -> "Tools": ...


@dataclass
class Tools:
    """kubectl and helm, pointed at the cluster."""

    prefix: list[str]  # words before each command
    kubectl_path: str
    helm_path: str
    kubeconfig: Path

    def kubectl(
        self, *arguments: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return self._run([self.kubectl_path, f"--kubeconfig={self.kubeconfig}", *arguments], stdin, check)

    def helm(self, *arguments: str) -> str:
        return self._run([self.helm_path, f"--kubeconfig={self.kubeconfig}", *arguments], None, True).stdout

    def _run(self, command: list[str], stdin: str | None, check: bool) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*self.prefix, *command], input=stdin, capture_output=True, text=True, timeout=300)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command[:1] + command[2:])}: {done.stderr.strip() or done.stdout.strip()}")
        return done


@dataclass
class OwnCluster:
    layout: Layout
    name: str = "a cluster built here"
    archives: dict[str, Path] = field(default_factory=dict)

    @property
    def audit_log(self) -> Path | None:
        return self.layout.audit_log

    def build(self) -> None:
        subprocess.run([str(ROOT / "scripts/system-packages.sh"), "e2e"], check=True)
        ensure_binaries()
        self.archives = images.build_images()

    def up(self) -> Images:
        up(self.layout)
        self.tools.kubectl("apply", "--server-side", "-f", str(leader_worker_set_crd()))
        return Images(engine="localhost/quire-engine:e2e", operator="localhost/quire-operator:e2e")

    def load(self) -> None:
        for archive in self.archives.values():
            images.import_image(self.layout, archive)

    def down(self) -> list[str]:
        down(self.layout)
        return left_over(self.layout)

    @property
    def tools(self) -> Tools:
        return Tools(self.layout.inside, str(BINARIES / "kubectl"), str(BINARIES / "helm"), self.layout.kubeconfig)


@dataclass
class Kind:
    cluster: str
    folder: Path
    name: str = "kind"
    audit_log: Path | None = None

    def build(self) -> None:
        for part in ("engine", "operator"):
            tag = f"quire-{part}:e2e"
            subprocess.run(
                ["docker", "build", "-q", f"--file={ROOT / f'Dockerfile.{part}'}", f"--tag={tag}", str(ROOT)],
                check=True,
            )

    def up(self) -> Images:
        subprocess.run(
            ["kind", "create", "cluster", f"--name={self.cluster}", f"--kubeconfig={self._kubeconfig}"], check=True
        )
        return Images(engine="docker.io/library/quire-engine:e2e", operator="docker.io/library/quire-operator:e2e")

    def load(self) -> None:
        for part in ("engine", "operator"):
            subprocess.run(["kind", "load", "docker-image", f"--name={self.cluster}", f"quire-{part}:e2e"], check=True)

    def down(self) -> list[str]:
        subprocess.run(["kind", "delete", "cluster", f"--name={self.cluster}"], check=True)
        return []

    @property
    def _kubeconfig(self) -> Path:
        return self.folder / f"{self.cluster}.kubeconfig"

    @property
    def tools(self) -> Tools:
        return Tools([], _needed("kubectl"), _needed("helm"), self._kubeconfig)


@dataclass
class Given:
    kubeconfig: Path
    images: Images
    name: str = "the cluster of E2E_KUBECONFIG"
    audit_log: Path | None = None

    def build(self) -> None:
        """Its images are built already."""

    def up(self) -> Images:
        """Refuses a cluster that has Quire already: the checks install and remove it, with every model on it."""
        for what in ("crd/llmdeployments.quire.dev", f"namespace/{SYSTEM}", f"namespace/{NAMESPACE}"):
            if self.tools.kubectl("get", what, check=False).returncode == 0:
                raise SystemExit(
                    f"{what} is on that cluster already; the checks would destroy it. Use one without Quire."
                )
        return self.images

    def load(self) -> None:
        """It pulls them."""

    def down(self) -> list[str]:
        """The cluster stays; what the checks made on it goes."""
        self.tools.kubectl("delete", "llmd", "--all", f"--namespace={NAMESPACE}", "--ignore-not-found", check=False)
        self.tools.kubectl("delete", "namespace", SYSTEM, NAMESPACE, "--ignore-not-found")
        self.tools.kubectl("delete", "crd", "llmdeployments.quire.dev", "--ignore-not-found")
        self.tools.kubectl(
            "delete",
            "clusterrole,clusterrolebinding",
            "-l",
            f"app.kubernetes.io/instance={RELEASE}",
            "--ignore-not-found",
        )
        return []

    @property
    def tools(self) -> Tools:
        return Tools([], _needed("kubectl"), _needed("helm"), self.kubeconfig)


def choose(name: str, folder: Path) -> "OwnCluster | Kind | Given":
    if given := os.environ.get("E2E_KUBECONFIG"):
        engine, operator = os.environ.get("E2E_ENGINE_IMAGE"), os.environ.get("E2E_OPERATOR_IMAGE")
        if not engine or not operator:
            raise SystemExit(
                "E2E_KUBECONFIG is set: set E2E_ENGINE_IMAGE and E2E_OPERATOR_IMAGE to images which that cluster can pull"
            )
        return Given(Path(given), Images(engine, operator))
    docker = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    if docker and shutil.which("kind"):
        return Kind(f"quire-{name}", folder)
    return OwnCluster(Layout(name))


def _needed(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise SystemExit(f"{program} is not on the PATH, and this kind of cluster needs it")
    return path
