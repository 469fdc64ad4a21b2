"""The world of a cluster, for the conformance scenarios: kubectl, and clients in a pod."""

import json
import subprocess
import textwrap
from typing import Any

import yaml
from checks import STREAM_CLIENT, World
from target import NAMESPACE, RELEASE, SYSTEM

__all__ = ["ClusterWorld", "PodStreams"]

# In the engine's pod: a signal to the process that computes, the child of the API process.
SIGNAL = textwrap.dedent(
    """
    import os, sys
    from pathlib import Path
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (entry / "stat").read_text().rpartition(")")[2].split()[1] == "1":
            if b"quire_engine.process.worker" in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), {number})
    """
)


class ClusterWorld:
    name = "a cluster"

    def __init__(self, world: World) -> None:
        self._world = world
        self._kubectl = world.tools.kubectl

    def apply(self, resource: dict[str, Any]) -> None:
        self._kubectl("apply", "-n", NAMESPACE, "-f", "-", stdin=yaml.safe_dump(resource))

    def scale(self, name: str, replicas: int) -> None:
        self._kubectl("scale", "-n", NAMESPACE, f"llmd/{name}", f"--replicas={replicas}")

    def delete(self, name: str) -> None:
        self._kubectl("delete", "-n", NAMESPACE, f"llmd/{name}", "--timeout=120s")

    def resource(self, name: str) -> dict[str, Any] | None:
        done = self._kubectl("get", "-n", NAMESPACE, "llmd", name, "-o", "json", "--ignore-not-found")
        found: dict[str, Any] | None = json.loads(done.stdout) if done.stdout.strip() else None
        return found

    def engines(self, name: str) -> list[str]:
        pods = self._world.get("pods", "-l", f"quire.dev/llmdeployment={name}")["items"]
        return [pod["metadata"]["uid"] for pod in pods]

    def signal(self, name: str, number: int) -> None:
        pod = self._world.get("pods", "-l", f"quire.dev/llmdeployment={name}")["items"][0]["metadata"]["name"]
        self._kubectl("exec", "-n", NAMESPACE, pod, "--", "python3", "-c", SIGNAL.format(number=int(number)))

    def answer(self, model: str, question: str) -> str:
        done = self._kubectl(*_in_a_pod(f"print(ask({_host(model)!r}, {question!r}, {model!r})[1])"))
        return done.stdout.strip()

    def stream(self, model: str, count: int) -> "PodStreams":
        return PodStreams(self._world, _host(model), model, count)


class PodStreams:
    """All clients are threads of one process in a pod; it says when each has begun, and ends when its input does."""

    def __init__(self, world: World, host: str, model: str, count: int) -> None:
        tools = world.tools
        kubectl = [*tools.prefix, tools.kubectl_path, f"--kubeconfig={tools.kubeconfig}"]
        program = f"many({host!r}, {model!r}, {count})"
        self._process = subprocess.Popen(
            [*kubectl, *_in_a_pod(program, "-i")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begun(self) -> bool:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip() == "begun"

    def finish(self) -> list[str]:
        out, _ = self._process.communicate(timeout=300)
        assert self._process.returncode == 0, out
        return [line for line in out.splitlines() if line]  # the list of none is a line, too


def _in_a_pod(program: str, *flags: str) -> list[str]:
    return [
        "exec",
        *flags,
        "-n",
        SYSTEM,
        f"deploy/{RELEASE}-operator",
        "--",
        "python3",
        "-c",
        f"{STREAM_CLIENT}\n{program}",
    ]


def _host(model: str) -> str:
    """Each model has a Service with its resource's name."""
    return f"{model.removesuffix('-model')}.{NAMESPACE}.svc.cluster.local"
