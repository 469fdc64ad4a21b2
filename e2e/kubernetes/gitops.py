"""What GitOps tools make of our statuses: kstatus's own library, and our health script in the interpreter of Argo CD.

The resources are those of `tests/fakes/states.py`, one for each state; `judge/` is a Go program that asks both. It needs no cluster.
"""

import json
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

from fakes.kstatus import kstatus
from fakes.states import states
from layout import CACHE
from target import ROOT

__all__ = ["GITOPS"]

HEALTH = ROOT / "config" / "argocd" / "health.lua"
SOURCE = Path(__file__).with_name("judge")


def tools_agree() -> None:
    """kstatus's library and Argo CD's interpreter read every state of a resource as its conditions say"""
    known = list(states())
    command = [str(_judge()), str(HEALTH)]
    resources = json.dumps([state.resource for state in known])
    said = json.loads(subprocess.run(command, input=resources, capture_output=True, text=True, check=True).stdout)
    assert len(said) == len(known)
    for state, verdict in zip(known, said, strict=True):
        assert verdict["kstatus"] == state.kstatus, f"{state.name}: {verdict}"
        assert verdict["argo"] == state.argo, f"{state.name}: {verdict}"
        assert verdict["argoMessage"], f"{state.name}: {verdict}"
        assert kstatus(state.resource) == verdict["kstatus"], f"tests/fakes/kstatus.py is wrong about {state.name}"
    print(f"   {len(known)} states", flush=True)


def _judge() -> Path:
    """Built once for each state of its source, some seconds."""
    sources = b"".join(path.read_bytes() for path in sorted(SOURCE.iterdir()))
    program = CACHE / f"judge-{sha256(sources).hexdigest()[:12]}"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise SystemExit("what GitOps tools say is asked of their own libraries, and needs Go >= 1.24: go.dev/dl")
    CACHE.mkdir(parents=True, exist_ok=True)
    partial = CACHE / f".partial-judge-{os.getpid()}"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
    done = subprocess.run(
        ["go", "build", "-ldflags=-s -w", "-o", str(partial), "."], cwd=SOURCE, env=environment, capture_output=True, text=True
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"cannot build {SOURCE}:\n{done.stderr[-3000:]}")
    partial.rename(program)
    return program


GITOPS = (tools_agree,)
