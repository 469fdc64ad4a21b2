"""Where a pod's weights come from."""

from typing import Any

import pytest
from fakes.resources import good

from quire_api import LLMDeployment
from quire_api.flags import from_argv
from quire_operator.render import kubernetes, process
from quire_operator.settings import OperatorSettings


def pod_of(uri: str, **changes: Any) -> dict[str, Any]:
    resource = good(spec__model__source__uri=uri, **changes)
    objects = kubernetes.render(LLMDeployment.parse(resource), OperatorSettings(engine_image="engine:1")).objects
    return next(o for o in objects if o["kind"] == "Deployment")["spec"]["template"]["spec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("uri", ["hf://org/model@main", "s3://bucket/models/x", "https://host/x/manifest.json"])
def test_what_is_fetched_is_fetched_before_the_engine_starts(uri: str) -> None:
    pod = pod_of(uri)

    (fetcher,), (engine,) = pod["initContainers"], pod["containers"]
    assert fetcher["command"] == ["quire", "fetch", uri, "/weights", "--link=/run/quire/model"]
    assert {"name": "QUIRE_FETCH_STATUS_PORT", "value": "8000"} in fetcher["env"]
    assert "--model=/run/quire/model" in engine["command"]
    mounts = [{m["name"]: m["mountPath"] for m in c["volumeMounts"]} for c in (fetcher, engine)]
    assert mounts[0].items() <= mounts[1].items()
    assert set(mounts[1]) == {v["name"] for v in pod["volumes"]}


def test_only_what_fetches_gets_the_secret() -> None:
    pod = pod_of("hf://org/model", spec__model__source__secretRef={"name": "hf-token"})

    assert pod["initContainers"][0]["envFrom"] == [{"secretRef": {"name": "hf-token"}}]
    assert "hf-token" not in str(pod["containers"])


def test_weights_stay_on_a_claim_if_there_is_one() -> None:
    own, shared = pod_of("hf://org/model"), pod_of("hf://org/model", spec__weights={"cache": {"claimName": "models"}})

    assert {"name": "weights", "emptyDir": {}} in own["volumes"]
    assert {"name": "weights", "persistentVolumeClaim": {"claimName": "models"}} in shared["volumes"]


def test_a_volume_that_has_them_is_mounted_where_the_engine_looks() -> None:
    pod = pod_of("pvc://models/llama/3")

    assert "initContainers" not in pod
    assert "--model=pvc://models/llama/3" in pod["containers"][0]["command"]
    assert {"name": "weights", "mountPath": "/pvc/models", "readOnly": True} in pod["containers"][0]["volumeMounts"]


def test_one_machine_fetches_the_files_that_were_chosen_too() -> None:
    source = {"uri": "hf://org/model", "include": ["a*", "b"]}
    (template,) = process.render(LLMDeployment.parse(good(spec__model={"source": source})), "http://here").objects

    command = template["spec"]["template"]["command"]

    assert from_argv(command[2:]).include == ("a*", "b")


def test_every_hash_is_compared_where_that_is_wished() -> None:
    pod = pod_of("hf://org/model", spec__weights={"verify": "Always"})

    assert "--verify-weights=always" in pod["containers"][0]["command"]


def test_a_container_has_no_more_rights_for_fetching() -> None:
    pod = pod_of("hf://org/model")

    assert pod["initContainers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
