"""Mode HPA with the HPA controller of Kubernetes, and what a quota refuses: the operator as a process, before there are images.

No kubelet is in it: the pods ask for a node that there is not, and a thread of the stage says of each that it runs. The operator has the
rights of the chart and no others. Only on a cluster that is built here, for the metrics API is a process in its network.
"""

import base64
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from checks import World, reason
from fakes.resources import good
from layout import KUBERNETES, NODE_ADDRESS, Layout
from target import NAMESPACE, RELEASE, ROOT, SYSTEM

__all__ = ["hpa_scales_engines"]

NAME, ASKS = "scaled", "refused"
PORT = 6444
WAITING, KV_USAGE = "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
KIND = {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment"}


def hpa_scales_engines(world: World, layout: Layout) -> None:
    """mode HPA: the HPA controller, by metrics that pods export, scales up and down; without metrics it is said; what a quota refuses too"""
    with tempfile.TemporaryDirectory() as folder, _operator(world, Path(folder)), _player(world):
        metrics = Path(folder) / "metrics.json"
        _apply(world, NAME, {"mode": "HPA", "min": 1, "max": 4, "behavior": {"scaleDownDelay": "1s"}})
        world.eventually("an engine serves", lambda: _serving(world) == "1/1", 60)
        world.eventually(
            "it says that it has no metrics", lambda: reason(world, NAME, "AutoscalingActive") == "HPANotActive", 60
        )
        assert reason(world, NAME, "Ready") == "Serving"
        load = {"waiting": 0}
        with _metrics_api(world, Path(folder), metrics), _pods_export(world, metrics, load):
            _follows_the_load(world, layout, load)
        _apply(world, NAME, {"mode": "Manual"})
        world.eventually("no HPA is left", lambda: not world.get("hpa")["items"], 30)
        assert reason(world, NAME, "AutoscalingActive") == ""
        _quota_refuses_a_job(world)
        world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{NAME}", "--timeout=60s")


def _follows_the_load(world: World, layout: Layout, load: dict[str, int]) -> None:
    world.eventually("it has metrics", lambda: reason(world, NAME, "AutoscalingActive") == "ScaledByHPA", 90)
    assert _serving(world) == "1/1"
    load["waiting"] = 40
    world.eventually("load: four engines", lambda: _serving(world) == "4/4", 120)
    assert world.get("llmd", NAME)["spec"]["replicas"] == 4
    before, began = _writes(layout), time.monotonic()
    while time.monotonic() - began < 20:  # the HPA's status changes meanwhile, which is nobody's business
        time.sleep(1)
    assert _writes(layout) == before, "the operator writes while nothing happens"
    load["waiting"] = 0
    world.eventually("no load: one engine", lambda: _serving(world) == "1/1", 180)
    assert world.get("llmd", NAME)["spec"]["replicas"] == 1


def _quota_refuses_a_job(world: World) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": NAMESPACE}}
    pods = len(world.get("pods")["items"])
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump({**quota, "spec": {"hard": {"pods": str(pods)}}}))
    world.eventually("the quota counts", lambda: "hard" in world.get("resourcequota", "none").get("status", {}), 30)
    manifest = good(
        metadata__name=ASKS, metadata__namespace=NAMESPACE, spec__model={"source": {"uri": "hf://acme/model"}}
    )
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    world.eventually(
        "it says what refuses the Job's pod", lambda: reason(world, ASKS, "Stalled") == "QuotaExceeded", 60
    )
    conditions = world.get("llmd", ASKS)["status"]["conditions"]
    message = next(c["message"] for c in conditions if c["type"] == "Stalled")
    assert "exceeded quota: none" in message, message
    world.tools.kubectl("delete", "-n", NAMESPACE, f"llmd/{ASKS}", "resourcequota/none", "--timeout=60s")


def _apply(world: World, name: str, autoscaling: dict[str, Any]) -> None:
    """Without `replicas`, which others write."""
    manifest = good(
        metadata__name=name,
        metadata__namespace=NAMESPACE,
        spec__autoscaling=autoscaling,
        spec__scheduling={"nodeSelector": {"quire.dev/e2e": "no-such-node"}},
    )
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))


def _serving(world: World) -> str:
    return str(world.get("llmd", NAME).get("status", {}).get("serving", ""))


def _pods(world: World) -> list[str]:
    pods = world.get("pods", "-l", f"quire.dev/llmdeployment={NAME}")["items"]
    return [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def _writes(layout: Layout) -> int:
    """Of the operator."""
    user = f'"username":"system:serviceaccount:{SYSTEM}:{RELEASE}-operator"'
    lines = (line for line in layout.audit_log.read_text().splitlines() if user in line)
    return sum(f'"verb":"{verb}"' in line for line in lines for verb in ("patch", "create", "update", "delete"))


@contextmanager
def _pods_export(world: World, metrics: Path, load: dict[str, int]) -> Iterator[None]:
    """Each pod the same; a file is replaced, never half there."""

    def report() -> None:
        values = {pod: str(load["waiting"]) for pod in _pods(world)}
        partial = metrics.with_suffix(".partial")
        partial.write_text(json.dumps({WAITING: values, KV_USAGE: dict.fromkeys(values, "100m")}))
        partial.rename(metrics)

    with _again_and_again(report, 1.0):
        yield


@contextmanager
def _player(world: World) -> Iterator[None]:
    """Pods without a node run, as soon as they are there."""
    status = {
        "phase": "Running",
        "podIP": NODE_ADDRESS,
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
    }
    played: set[str] = set()

    def play() -> None:
        for pod in set(_pods(world)) - played:
            patch = ["patch", "pod", pod, "-n", NAMESPACE, "--subresource=status", "--type=merge"]
            done = world.tools.kubectl(*patch, "-p", json.dumps({"status": status}), check=False)
            played.update({pod} if done.returncode == 0 else ())

    with _again_and_again(play, 0.5):
        yield


@contextmanager
def _again_and_again(act: Callable[[], None], every_s: float) -> Iterator[None]:
    """In a thread, which is over when this is."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every_s):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _operator(world: World, folder: Path) -> Iterator[None]:
    """With the chart's rights; gone without a trace afterwards, so that the chart can be installed."""
    show = [f"--show-only=templates/{name}.yaml" for name in ("rbac", "serviceaccount")]
    known = f"--kube-version={KUBERNETES}"  # else it renders for a version of its own
    chart = str(ROOT / "charts" / "quire")
    manifests = world.tools.helm("template", RELEASE, chart, f"--namespace={SYSTEM}", known, *show)
    world.tools.kubectl("create", "namespace", SYSTEM)
    try:
        world.tools.kubectl("apply", "-f", "-", stdin=manifests)
        account = f"{RELEASE}-operator"
        token = world.tools.kubectl("create", "token", account, "-n", SYSTEM, "--duration=1h").stdout.strip()
        config = yaml.safe_load(world.tools.kubeconfig.read_text())
        config["users"] = [{"name": "user", "user": {"token": token}}]
        kubeconfig = folder / "operator.kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(config))
        command = [
            sys.executable,
            "-m",
            "quire_api",
            "operator",
            "--no-lease",
            "--port=8089",
            f"--namespace={NAMESPACE}",
        ]
        with _process(world, ["env", f"KUBECONFIG={kubeconfig}", *command], folder / "operator.log"):
            yield
    finally:
        world.tools.kubectl("delete", "-f", "-", "--ignore-not-found", stdin=manifests)
        world.tools.kubectl("delete", "namespace", SYSTEM, "--timeout=60s")


@contextmanager
def _metrics_api(world: World, folder: Path, metrics: Path) -> Iterator[None]:
    host = f"metrics.{NAMESPACE}.svc"
    certificate, key = folder / "metrics.crt", folder / "metrics.key"
    make = f"req -x509 -newkey rsa:2048 -nodes -keyout {key} -out {certificate} -days 2 -subj /CN={host} -addext subjectAltName=DNS:{host}"
    subprocess.run(["openssl", *make.split()], check=True, capture_output=True)
    metrics.write_text("{}")
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "metrics", "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": NODE_ADDRESS},
    }
    api = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta2.custom.metrics.k8s.io"},
        "spec": {
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "caBundle": base64.b64encode(certificate.read_bytes()).decode(),
            "service": {"name": "metrics", "namespace": NAMESPACE, "port": PORT},
        },
    }
    program = str(Path(__file__).with_name("metrics_api.py"))
    command = [sys.executable, program, str(metrics), NODE_ADDRESS, str(PORT), str(certificate), str(key)]
    manifests = yaml.safe_dump_all([service, api])
    with _process(world, command, folder / "metrics.log"):
        world.tools.kubectl("apply", "-f", "-", stdin=manifests)
        try:
            yield
        finally:
            world.tools.kubectl("delete", "-f", "-", "--ignore-not-found", stdin=manifests)


@contextmanager
def _process(world: World, command: list[str], log: Path) -> Iterator[None]:
    """In the cluster's network; when the stage fails its last words are shown."""
    with log.open("wb") as file:
        process = subprocess.Popen([*world.tools.prefix, *command], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        yield
    except BaseException:
        print(f"-- {log.name}\n{log.read_text(errors='replace')[-3000:]}", flush=True)
        raise
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
