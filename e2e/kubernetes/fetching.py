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
    time.sleep(3600)
"""


def weights_are_fetched_with_a_token(world: checks.World) -> None:
    """a pod fetches from a hub: a wrong token is Stalled/ModelAccessDenied, the right one is taken up and serves; no engine sees it"""
    _start_hub(world)
    _set_token(world, "a-wrong-one")
    manifest = good(
        metadata__name=NAME,
        metadata__namespace=NAMESPACE,
        spec__model={"name": "quire-tiny", "source": {"uri": "hf://acme/tiny", "secretRef": {"name": "hub-token"}}},
        spec__weights={"verify": "Always"},
        spec__engine={"maxNumSeqs": 8, "kvCacheGiB": 0.05},
    )
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    world.eventually("it is stalled", lambda: reason(world, NAME, "Stalled") == "ModelAccessDenied", 90)
    conditions = world.get("llmd", NAME)["status"]["conditions"]
    assert "a-wrong-one" not in str(conditions), conditions

    _set_token(world, TOKEN)
    world.tools.kubectl("wait", "-n", NAMESPACE, f"llmd/{NAME}", "--for=condition=Ready", "--timeout=240s")
    events, text = ask(world, "What is an LLMDeployment?", f"{NAME}.{NAMESPACE}.svc.cluster.local")
    assert events > 5, (events, text)
    assert "one served model" in text, text
    inside = ["exec", "-n", NAMESPACE, f"deploy/{NAME}", "-c", "engine", "--"]
    assert "TOKEN" not in world.tools.kubectl(*inside, "env").stdout
    world.tools.kubectl(
        "delete", "-n", NAMESPACE, f"llmd/{NAME}", "pod/hub", "service/hub", "configmap/hub", "secret/hub-token"
    )


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
    world.tools.kubectl("wait", "-n", NAMESPACE, "pod/hub", "--for=condition=Ready", "--timeout=60s")


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
WITH_IMAGES = (*checks.WITH_IMAGES[:_AFTER], weights_are_fetched_with_a_token, *checks.WITH_IMAGES[_AFTER:])
