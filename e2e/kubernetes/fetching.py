"""Weights that a pod fetches: from a hub inside the cluster, which wants a token.

The hub is that of the tests, in a pod of the engine's image, which has a model to give.
"""

import base64
from typing import Any

import checks
import yaml
from checks import ask, reason
from fakes.resources import good
from target import NAMESPACE, ROOT

__all__ = ["WITH_IMAGES"]

NAME, TOKEN = "fetched", "the-right-one"
SERVE = f"""
import pathlib, time, hub
files = {{str(p.relative_to("/models/quire-tiny")): p for p in pathlib.Path("/models/quire-tiny").rglob("*") if p.is_file()}}
with hub.hub((("", 8000), ("", 8001)), ("http://hub:8000", "http://hub:8001")) as it:
    it.repos["acme/tiny"] = hub.Repo(files=files, token={TOKEN!r}, gated=True)
    it.repos["acme/spoiled"] = hub.Repo(files=files)
    it.faults.append(hub.Fault("acme/spoiled/model", times=10**9, wrong=True))
    time.sleep(3600)
"""


def _manifest(uri: str = "hf://acme/tiny", **changes: Any) -> dict[str, Any]:
    return good(
        metadata__name=NAME,
        metadata__namespace=NAMESPACE,
        spec__model={"name": "quire-tiny", "source": {"uri": uri, "secretRef": {"name": "hub-token"}}},
        spec__weights={"verify": "Always"},
        **{"spec__engine": {"maxNumSeqs": 8, "kvCacheGiB": 0.05}, **changes},
    )


def _jobs(world: checks.World) -> list[Any]:
    items: list[Any] = world.get("jobs", "-l", f"quire.dev/llmdeployment={NAME}")["items"]
    return items


def weights_are_fetched_with_a_token(world: checks.World) -> None:
    """a Job asks a hub: no Secret is Stalled/ReferenceNotFound, a wrong token ModelAccessDenied, the right one is taken up; no engine sees it"""
    _start_hub(world)
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(_manifest()))
    world.eventually("the Secret is missed", lambda: reason(world, NAME, "Stalled") == "ReferenceNotFound", 240)
    assert 'secret "hub-token" not found' in world.get("llmd", NAME)["status"]["conditions"][0]["message"]
    _set_token(world, "a-wrong-one")
    world.eventually("it is denied", lambda: reason(world, NAME, "Stalled") == "ModelAccessDenied", 90)
    conditions = world.get("llmd", NAME)["status"]["conditions"]
    assert "a-wrong-one" not in str(conditions), conditions
    assert not world.get("deployments", "-l", f"quire.dev/llmdeployment={NAME}")["items"]

    _set_token(world, TOKEN)
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=240s")
    events, text = ask(world, "What is an LLMDeployment?", f"{NAME}.{NAMESPACE}.svc.cluster.local")
    assert events > 5, (events, text)
    assert "one served model" in text, text
    assert world.get("llmd", NAME)["status"]["model"]["revision"] == "a" * 40
    world.eventually("the Job is gone", lambda: not _jobs(world), 20)
    inside = ["exec", "-n", NAMESPACE, f"deploy/{NAME}", "-c", "engine", "--"]
    assert "TOKEN" not in world.tools.kubectl(*inside, "env").stdout


def wrong_weights_are_never_loaded(world: checks.World) -> None:
    """weights of which a byte is another: Stalled/WeightsCorrupt, the old engine serves on; mended, it goes on"""
    before = _engines(world)
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(_manifest("hf://acme/spoiled")))
    world.eventually("it is stalled", lambda: reason(world, NAME, "Stalled") == "WeightsCorrupt", 120)
    conditions = world.get("llmd", NAME)["status"]["conditions"]
    assert "arrived twice with another content" in str(conditions), conditions
    assert ask(world, "What is an LLMDeployment?", f"{NAME}.{NAMESPACE}.svc.cluster.local")[0] > 5
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(_manifest()))
    world.eventually("nothing is wrong with it", lambda: reason(world, NAME, "Stalled") == "", 60)
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=60s")
    world.eventually("only the engine from before is left", lambda: _engines(world) == before, 60)


def what_does_not_fit_changes_nothing(world: checks.World) -> None:
    """a model larger than its container's memory limit: Stalled/DoesNotFit with the numbers, the old engine serves on; mended, it goes on"""
    limit = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "600Mi"}}}]}}
    before = _engines(world)
    large = _manifest(spec__podTemplate=limit, spec__engine={"maxNumSeqs": 8, "kvCacheGiB": 1.0})
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(large))
    world.eventually("it is stalled", lambda: reason(world, NAME, "Stalled") == "DoesNotFit", 30)
    message = world.get("llmd", NAME)["status"]["conditions"][0]["message"]
    assert "1.00 GiB for the KV cache" in message, message
    assert "has 0.59 GiB" in message, message
    assert _engines(world) == before
    assert ask(world, "What is an LLMDeployment?", f"{NAME}.{NAMESPACE}.svc.cluster.local")[0] > 5
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(_manifest()))
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=60s")
    assert _engines(world) == before


def a_quota_is_said(world: checks.World) -> None:
    """a namespace without room for one more pod: Stalled/QuotaExceeded, the engine that there is serves on; with room it goes on"""
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "full", "namespace": NAMESPACE},
        "spec": {"hard": {"pods": "0"}},
    }
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(quota))
    world.tools.kubectl("scale", "-n", NAMESPACE, f"llmd/{NAME}", "--replicas=2")
    world.eventually("it is stalled", lambda: reason(world, NAME, "Stalled") == "QuotaExceeded", 60)
    assert "exceeded quota: full" in world.get("llmd", NAME)["status"]["conditions"][0]["message"]
    world.tools.kubectl("delete", "-n", NAMESPACE, "resourcequota/full")
    world.tools.kubectl("scale", "-n", NAMESPACE, f"llmd/{NAME}", "--replicas=1")
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=120s")
    world.tools.kubectl(
        "delete", "-n", NAMESPACE, f"llmd/{NAME}", "pod/hub", "service/hub", "configmap/hub", "secret/hub-token"
    )


def _engines(world: checks.World) -> list[str]:
    pods = world.get("pods", "-l", f"quire.dev/llmdeployment={NAME},quire.dev/role=engine")["items"]
    return [pod["metadata"]["uid"] for pod in pods]


def _start_hub(world: checks.World) -> None:
    program = {"hub.py": (ROOT / "tests/fakes/hub.py").read_text(), "serve.py": SERVE}
    metadata = {"name": "hub", "namespace": NAMESPACE, "labels": {"app": "hub"}}
    container = {
        "name": "hub",
        "image": world.images.engine,
        "command": ["python3", "/hub/serve.py"],
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "readinessProbe": {"tcpSocket": {"port": 8001}, "periodSeconds": 1},
    }
    pod = {
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "volumes": [{"name": "hub", "configMap": {"name": "hub"}}],
    }
    ports = [{"name": name, "port": port} for name, port in (("hub", 8000), ("cdn", 8001))]
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": program},
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata,
            "spec": {"selector": {"app": "hub"}, "ports": ports},
        },
    ]
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    world.tools.kubectl("wait", "-n", NAMESPACE, "pod/hub", "--for=condition=Ready", "--timeout=240s")


def _set_token(world: checks.World, token: str) -> None:
    told = {"HF_ENDPOINT": "http://hub:8000", "HF_TOKEN": token}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "hub-token", "namespace": NAMESPACE},
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in told.items()},
    }
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(secret))


_AFTER = checks.WITH_IMAGES.index(checks.bad_source_is_stalled) + 1
OF_WEIGHTS = (
    weights_are_fetched_with_a_token,
    wrong_weights_are_never_loaded,
    what_does_not_fit_changes_nothing,
    a_quota_is_said,
)
WITH_IMAGES = (*checks.WITH_IMAGES[:_AFTER], *OF_WEIGHTS, *checks.WITH_IMAGES[_AFTER:])
