"""Builds the programs of a cluster from source, through the Go module proxy, into the cache.

Kubernetes' go.mod points at folders of its own repository, so `go install` refuses it; binaries/go.mod states
the published versions of those folders instead. Whatever is in the cache already is left alone.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from layout import BINARIES, CACHE, COREDNS, HELM, KUBERNETES, KWOK, LEADER_WORKER_SET

KUBERNETES_PROGRAMS = (
    "kubectl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
MODULES = {
    "helm": f"helm.sh/helm/v3/cmd/helm@{HELM}",
    "coredns": f"github.com/coredns/coredns@{COREDNS}",
    "kwok": f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}",
}


def ensure_binaries() -> None:
    """Build what is missing: about ten minutes on two cores from nothing, no time when all is there."""
    _ensure({name: BINARIES / name for name in (*KUBERNETES_PROGRAMS, "helm", "coredns")})


def ensure_kwok() -> Path:
    """What plays nodes and pods, for those who need many of them."""
    path = CACHE / f"kwok-{KWOK}"
    _ensure({"kwok": path})
    return path


def leader_worker_set_crd() -> Path:
    """The CRD alone, as the module carries it: nothing runs that would act on it."""
    module = f"sigs.k8s.io/lws@{LEADER_WORKER_SET}"
    with tempfile.TemporaryDirectory() as empty:  # outside of any module
        done = subprocess.run(["go", "mod", "download", "-json", module], cwd=empty, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cannot download {module}:\n{done.stderr[-3000:] or done.stdout[-3000:]}")
    return Path(json.loads(done.stdout)["Dir"]) / "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"


def _ensure(programs: dict[str, Path]) -> None:
    missing = {name: path for name, path in programs.items() if not path.exists()}
    if not missing:
        return
    if shutil.which("go") is None:
        raise SystemExit(
            "the e2e cluster is built from source and needs Go >= 1.24: go.dev/dl, or apt-get install golang-1.24-go from backports"
        )
    BINARIES.mkdir(parents=True, exist_ok=True)
    for name, path in missing.items():
        started = time.monotonic()
        print(f"  building {name} ...", flush=True)
        _build(name, path)
        print(f"  built {name} in {time.monotonic() - started:.0f} s", flush=True)


def _build(name: str, path: Path) -> None:
    here = Path(__file__).resolve().parent / "binaries"
    partial = BINARIES / f".partial-{os.getpid()}"  # so that an interrupted build is never taken for a program
    partial.mkdir(exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOBIN": str(partial)}
    if name in MODULES:
        command = ["go", "install", "-ldflags=-s -w", MODULES[name]]
        cwd = partial
    else:
        version = f"-X k8s.io/component-base/version.gitVersion={KUBERNETES} -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
        command = [
            "go",
            "build",
            f"-ldflags=-s -w {version}",
            "-o",
            str(partial / name),
            f"k8s.io/kubernetes/cmd/{name}",
        ]
        cwd = here
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"cannot build {name}:\n{done.stderr[-3000:]}")
    (partial / name).rename(path)
    shutil.rmtree(partial)
