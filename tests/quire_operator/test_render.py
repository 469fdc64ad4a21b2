"""What one resource becomes: the objects around its engines, where they run, and what users may say of the pod."""

from typing import Any

import pytest
from fakes.resources import good

from quire_api import InvalidInput, LLMDeployment
from quire_api.metrics import ENGINE
from quire_operator.render import kubernetes, process
from quire_operator.settings import PROFILES, AcceleratorProfile, OperatorSettings

MIG = AcceleratorProfile(
    resource="nvidia.com/mig-3g.20gb",
    memory_gib=20,
    node_selector={"gpu": "a100", "pool": "any"},
    tolerations=({"key": "nvidia.com/gpu", "operator": "Exists"},),  # type: ignore[arg-type]  # as it stands in a file
    environment={"NCCL_DEBUG": "WARN"},
)
SETTINGS = OperatorSettings(engine_image="engine:1", profiles={**PROFILES, "mig": MIG})


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    rendered = kubernetes.render(LLMDeployment.parse(good(**changes)), SETTINGS).objects
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in rendered}


def template(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = objects(**changes)["Deployment/good"]["spec"]["template"]
    return found


def pod(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = template(**changes)["spec"]
    return found


def engine(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(**changes)["containers"][0]
    return found


ENGINE_LABELS = {"quire.dev/llmdeployment": "good", "quire.dev/role": "engine"}


def test_what_stands_around_one_engine() -> None:
    assert list(objects()) == [
        "ServiceAccount/good",
        "Service/good",
        "Service/good-engines",
        "NetworkPolicy/good",
        "Deployment/good",
    ]
    assert objects()["Service/good-engines"]["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, False),
        ({"spec__replicas": 2}, True),
        ({"spec__autoscaling": {"mode": "Builtin", "max": 1}}, False),
        ({"spec__autoscaling": {"mode": "Builtin", "max": 4}}, True),
        ({"spec__autoscaling": {"mode": "External"}, "spec__replicas": 3}, True),
        ({"spec__autoscaling": {"mode": "HPA", "max": 4}}, True),
    ],
)
def test_node_drains_are_bounded_where_there_may_be_more_than_one(changes: dict[str, Any], wanted: bool) -> None:
    assert ("PodDisruptionBudget/good" in objects(**changes)) is wanted


@pytest.mark.parametrize(
    ("said", "stays"),
    [
        ([], {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}),
        (
            [{"key": "team", "operator": "Exists"}],
            {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30},
        ),
        (
            [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "tolerationSeconds": 600}],
            {"node.kubernetes.io/unreachable": 600, "node.kubernetes.io/not-ready": 30},
        ),
        ([{"operator": "Exists"}], {}),
        ([{"operator": "Exists", "effect": "NoExecute"}], {}),
        (
            [{"operator": "Exists", "effect": "NoSchedule"}],
            {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30},
        ),
    ],
)
def test_engines_leave_a_lost_node_after_half_a_minute_unless_somebody_says_otherwise(
    said: list[dict[str, Any]], stays: dict[str, int]
) -> None:
    tolerations = pod(spec__scheduling={"tolerations": said}).get("tolerations", [])

    assert {t["key"]: t["tolerationSeconds"] for t in tolerations if "tolerationSeconds" in t} == stays


def test_mode_hpa_asks_for_what_the_targets_say_by_the_names_of_the_engine() -> None:
    wanted = {
        "mode": "HPA",
        "min": 2,
        "max": 6,
        "targets": {"kvCacheUtilization": 0.6, "waitingPerReplica": 9},
        "behavior": {"scaleDownDelay": "10m"},
    }

    spec = objects(spec__autoscaling=wanted)["HorizontalPodAutoscaler/good"]["spec"]

    assert spec["scaleTargetRef"] == {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "name": "good"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    means = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in spec["metrics"]}
    assert means == {"vllm:kv_cache_usage_perc": "600m", "vllm:num_requests_waiting": "9"}
    assert set(means) <= {metric.name for metric in ENGINE}
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600


@pytest.mark.parametrize("mode", ["Manual", "Builtin", "External"])
def test_in_other_modes_there_is_no_hpa(mode: str) -> None:
    assert "HorizontalPodAutoscaler/good" not in objects(spec__autoscaling={"mode": mode, "max": 3})


def test_on_one_machine_mode_hpa_is_refused_in_a_sentence() -> None:
    resource = LLMDeployment.parse(good(spec__autoscaling={"mode": "HPA", "max": 3}))

    with pytest.raises(InvalidInput, match="HPA needs a cluster"):
        process.render(resource, "http://127.0.0.1:8000/v1")


def test_a_node_drain_takes_as_many_as_it_may() -> None:
    budget = objects(spec__replicas=5, spec__disruption={"maxUnavailable": 2})["PodDisruptionBudget/good"]["spec"]

    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (2, ENGINE_LABELS)


def test_what_the_pods_name_as_a_port_is_open_and_nothing_else() -> None:
    sidecar = {"name": "exporter", "image": "exporter:1", "ports": [{"containerPort": 9100, "protocol": "UDP"}]}
    policy = objects(spec__podTemplate={"spec": {"containers": [sidecar]}})["NetworkPolicy/good"]["spec"]

    assert policy["podSelector"]["matchLabels"] == ENGINE_LABELS
    assert policy["ingress"] == [{"ports": [{"port": 8000, "protocol": "TCP"}, {"port": 9100, "protocol": "UDP"}]}]


def test_pods_are_placed_as_the_resource_and_the_profile_ask() -> None:
    toleration = {"key": "team", "operator": "Equal", "value": "a"}
    placed = pod(
        spec__accelerator={"profile": "mig"},
        spec__scheduling={"nodeSelector": {"pool": "chat"}, "tolerations": [toleration], "priorityClassName": "high"},
    )

    assert placed["nodeSelector"] == {"gpu": "a100", "pool": "chat"}
    assert placed["tolerations"][:2] == [{"key": "nvidia.com/gpu", "operator": "Exists"}, toleration]
    assert placed["priorityClassName"] == "high"
    assert {"name": "NCCL_DEBUG", "value": "WARN"} in placed["containers"][0]["env"]


@pytest.mark.parametrize(
    ("spread", "key"),
    [(None, "topology.kubernetes.io/zone"), ("node", "kubernetes.io/hostname"), ("none", None)],
)
def test_engines_are_spread_as_far_as_there_is_room(spread: str | None, key: str | None) -> None:
    constraints = pod(spec__scheduling={"topologySpread": spread} if spread else {}).get(
        "topologySpreadConstraints", []
    )

    assert [(c["topologyKey"], c["whenUnsatisfiable"]) for c in constraints] == (
        [(key, "ScheduleAnyway")] if key else []
    )


@pytest.mark.parametrize(
    ("profile", "limits", "shared", "read_only"),
    [
        ("cpu", None, "1Gi", True),
        ("nvidia", {"nvidia.com/gpu": "1"}, "2Gi", False),
        ("mig", {"nvidia.com/mig-3g.20gb": "1"}, "2Gi", False),
    ],
)
def test_a_profile_says_what_a_pod_gets(
    profile: str, limits: dict[str, str] | None, shared: str, read_only: bool
) -> None:
    made = pod(spec__accelerator={"profile": profile})

    assert made["containers"][0]["resources"].get("limits") == limits
    assert made["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is read_only
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}} in made["volumes"]


def test_a_profile_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(InvalidInput, match=r"there is no profile 'tpu' here; there are cpu, mig, nvidia"):
        objects(spec__accelerator={"profile": "tpu"})


# podTemplate


def test_what_users_add_to_the_pod_is_merged_by_name() -> None:
    made = template(
        spec__podTemplate={
            "metadata": {"labels": {"team": "a"}, "annotations": {"env": "prod"}},
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [
                    {
                        "name": "engine",
                        "args": ["--log-format=json"],
                        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}, {"name": "HOME", "value": "/home"}],
                        "resources": {"limits": {"memory": "8Gi"}},
                        "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
                        "ports": [{"name": "debug", "containerPort": 5678}],
                    },
                    {"name": "sidecar", "image": "sidecar:1"},
                ],
                "volumes": [
                    {"name": "ca", "configMap": {"name": "ca"}},
                    {"name": "shm", "emptyDir": {"sizeLimit": "4Gi"}},
                    {"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}},
                ],
            },
        }
    )
    plain = engine()

    ours, sidecar = made["spec"]["containers"]
    assert made["metadata"]["labels"].items() >= {**ENGINE_LABELS, "team": "a"}.items()
    assert made["metadata"]["annotations"] == {"env": "prod"}
    assert made["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert (ours["command"], ours["args"]) == (plain["command"], ["--log-format=json"])
    assert {e["name"]: e["value"] for e in ours["env"]} == {
        "HOME": "/home",
        "PYTHONUNBUFFERED": "1",
        "HTTPS_PROXY": "http://proxy",
    }
    assert ours["resources"] == {**plain["resources"], "limits": {"memory": "8Gi"}}
    assert [m["mountPath"] for m in ours["volumeMounts"]] == ["/tmp", "/dev/shm", "/etc/ca"]
    assert [p["containerPort"] for p in ours["ports"]] == [8000, 5678]
    assert sidecar == {"name": "sidecar", "image": "sidecar:1"}
    assert made["spec"]["volumes"] == [
        {"name": "tmp", "persistentVolumeClaim": {"claimName": "scratch"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "4Gi"}},
        {"name": "ca", "configMap": {"name": "ca"}},
    ]


def test_the_container_that_fetches_can_be_added_to() -> None:
    added = {"initContainers": [{"name": "weights", "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}]}]}

    fetcher = pod(spec__model__source__uri="hf://a/b", spec__podTemplate={"spec": added})["initContainers"][0]

    assert fetcher["command"][:2] == ["quire", "fetch"]
    assert fetcher["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy"}


def test_what_users_add_is_another_revision() -> None:
    label = "quire.dev/revision"
    plain, annotated = template(), template(spec__podTemplate={"metadata": {"annotations": {"a": "b"}}})

    assert plain["metadata"]["labels"][label] != annotated["metadata"]["labels"][label]


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ({"kind": "Pod"}, "spec.podTemplate.kind: only metadata and spec are taken"),
        ({"metadata": {"name": "x"}}, "spec.podTemplate.metadata.name: only labels and annotations are taken"),
        ({"spec": 5}, "spec.podTemplate.spec: must be a map"),
        ({"spec": {"containers": {"engine": {}}}}, "spec.podTemplate.spec.containers: must be a list"),
        ({"spec": {"initContainers": 5}}, "spec.podTemplate.spec.initContainers: must be a list"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.podTemplate.spec.containers[0]: needs name"),
        ({"spec": {"containers": None}}, "spec.podTemplate.spec.containers: null takes nothing away"),
        ({"spec": {"$patch": "replace"}}, "spec.podTemplate.spec.$patch: directives are not taken"),
        (
            {"metadata": {"labels": {"quire.dev/role": "other"}}},
            "spec.podTemplate.metadata.labels.quire.dev/role: Quire finds its pods by it",
        ),
        (
            {"metadata": {"labels": {"quire.dev/revision": "mine"}}},
            "spec.podTemplate.metadata.labels.quire.dev/revision: Quire finds its pods by it",
        ),
        (
            {"spec": {"terminationGracePeriodSeconds": 1}},
            "spec.podTemplate.spec.terminationGracePeriodSeconds: spec.drain.timeout sets it",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "image": "mine"}]}},
            "spec.podTemplate.spec.containers[engine].image: spec.image sets it",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "command": ["sh"]}]}},
            "spec.podTemplate.spec.containers[engine].command: spec.engine has the engine's options",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "ports": [{"containerPort": 8000, "name": "web"}]}]}},
            "spec.podTemplate.spec.containers[engine].ports: the Service and the probes lead there",
        ),
    ],
)
def test_what_must_stay_as_it_is_is_refused_in_a_sentence(patch: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        objects(spec__podTemplate=patch)

    assert says in str(refused.value)


def test_the_number_of_gpus_is_not_the_templates_matter() -> None:
    limits = {"containers": [{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": "4"}}}]}

    with pytest.raises(InvalidInput, match=r"limits\.nvidia\.com/gpu: spec\.accelerator sets it"):
        objects(spec__accelerator={"profile": "nvidia"}, spec__podTemplate={"spec": limits})


def test_every_mistake_in_a_template_is_said_at_once() -> None:
    with pytest.raises(InvalidInput) as refused:
        objects(spec__podTemplate={"kind": "Pod", "spec": {"containers": [{}], "volumes": 1}})

    assert len(refused.value.problems) == 3
