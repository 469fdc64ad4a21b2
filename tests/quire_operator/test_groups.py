"""Engines on several nodes: the LeaderWorkerSet that they become, and what is read of its pods."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from fakes.lws_controller import RollOut
from fakes.resources import good

from quire_api import DeploymentStatus, InvalidInput, LLMDeployment
from quire_api.reasons import ConditionType, Reason
from quire_api.rollout import RevisionStatus
from quire_operator.backends.cluster import observe
from quire_operator.backends.pods import Asked
from quire_operator.backends.store import Store
from quire_operator.planner.autoscale import Policy, decide
from quire_operator.planner.conditions import trouble
from quire_operator.planner.demand import EngineLoad, Look, Memory
from quire_operator.planner.observed import Key, Observed, Workload, digest
from quire_operator.planner.plan import Apply, Create, Plan, Scale, Weigh, plan
from quire_operator.planner.workloads import rolled, stub
from quire_operator.reconcile import ResourceKey
from quire_operator.render import kubernetes, process
from quire_operator.settings import OperatorSettings

PUBLISHED = yaml.safe_load((Path(__file__).parent / "leaderworkerset-v0.7.0.yaml").read_text())
KEY = ResourceKey("default", "good")
NOW = "2026-01-01T00:00:00Z"
WIDE = {"tensor": 4, "pipeline": 2, "nodes": 2}


def resource(**changes: Any) -> dict[str, Any]:
    return good(
        **{
            "metadata__uid": "u",
            "spec__accelerator__profile": "nvidia",
            "spec__parallelism": WIDE,
            "spec__replicas": 2,
            **changes,
        }
    )


def objects(**changes: Any) -> dict[str, dict[str, Any]]:
    rendered = kubernetes.render(LLMDeployment.parse(resource(**changes)), OperatorSettings())
    return {f"{o['kind']}/{o['metadata']['name']}": dict(o) for o in rendered.objects}


def groups(**changes: Any) -> dict[str, Any]:
    return objects(**changes)["LeaderWorkerSet/good-nodes"]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """As `kubectl --validate=strict` does: what is not named is refused."""
    known = {name: strict(part) for name, part in schema.get("properties", {}).items()}
    return (
        {**schema, "properties": known, "additionalProperties": False}
        if known and "containers" not in known
        else schema
    )


@pytest.mark.parametrize("strategy", ["Auto", "TerminateFirst"])
def test_it_is_what_leader_worker_set_publishes(strategy: str) -> None:
    made = groups(spec__rollout={"strategy": strategy})

    assert (made["apiVersion"], made["kind"]) == (f"{PUBLISHED['group']}/{PUBLISHED['version']}", PUBLISHED["kind"])
    for spec in (made["spec"], stub(made)["spec"]):
        jsonschema.validate(spec, strict(PUBLISHED["spec"]))
    assert PUBLISHED["scale"]["specReplicasPath"] == ".spec.replicas"


def test_a_misspelt_field_would_not_pass() -> None:
    spec = {**groups()["spec"], "startup": "LeaderReady"}

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec, strict(PUBLISHED["spec"]))


def test_each_node_has_its_share_of_the_devices_and_all_the_flags() -> None:
    pods = groups()["spec"]["leaderWorkerTemplate"]

    assert pods["size"] == 2
    for template in (pods["leaderTemplate"], pods["workerTemplate"]):
        (engine,) = template["spec"]["containers"]
        assert engine["resources"]["limits"] == {"nvidia.com/gpu": "4"}
        assert {"--tensor-parallel-size=4", "--pipeline-parallel-size=2"} <= set(engine["command"])
        assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in template["spec"]["volumes"]


def test_what_is_made_of_a_leaders_template_stays_as_it_is() -> None:
    """Only the leader's is kept (ControllerRevision), and LeaderWorkerSet starts all groups again when any of this differs: another
    digest here ends every engine on several nodes the moment that the operator is upgraded. Then keep the worker's beside the leader's."""
    probe = {"httpGet": {"path": "/readyz", "port": "http"}}
    engine = {
        "name": "engine", "image": "i", "command": ["quire", "serve"], "ports": [{"containerPort": 8000}], "readinessProbe": probe,
        "livenessProbe": probe, "startupProbe": probe, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
    }  # fmt: skip
    pod = {"containers": [engine, {"name": "other", "ports": [{}]}], "topologySpreadConstraints": [{}], "affinity": {}}
    template = {"metadata": {"labels": {"quire.dev/role": "engine", "quire.dev/revision": "r"}}, "spec": pod}

    made = rolled(groups(), template, 0)["spec"]

    assert digest([made["startupPolicy"], made["leaderWorkerTemplate"]])[:12] == "20b8f8ac908b"


def test_leaders_alone_are_asked_counted_and_probed() -> None:
    made = objects()
    pods = made["LeaderWorkerSet/good-nodes"]["spec"]["leaderWorkerTemplate"]
    leader, worker = (pods[part]["metadata"]["labels"] for part in ("leaderTemplate", "workerTemplate"))

    selectors = [
        made["Service/good"]["spec"]["selector"],
        made["Service/good-engines"]["spec"]["selector"],
        made["PodDisruptionBudget/good"]["spec"]["selector"]["matchLabels"],
    ]

    assert all(selector.items() <= leader.items() and not selector.items() <= worker.items() for selector in selectors)
    assert "readinessProbe" in pods["leaderTemplate"]["spec"]["containers"][0]
    assert not {"readinessProbe", "livenessProbe", "startupProbe", "ports"} & set(
        pods["workerTemplate"]["spec"]["containers"][0]
    )


def test_pods_of_the_model_reach_each_other_at_any_port() -> None:
    spec = objects()["NetworkPolicy/good"]["spec"]

    everybody, among = spec["ingress"]
    assert everybody == {"ports": [{"port": 8000, "protocol": "TCP"}]}
    assert among == {"from": [{"podSelector": spec["podSelector"]}]}
    assert spec["podSelector"]["matchExpressions"][0]["values"] == ["engine", "worker"]


def test_groups_are_spread_without_the_label_that_only_a_deployment_gives() -> None:
    leader = groups(spec__scheduling={"topologySpread": "zone"})["spec"]["leaderWorkerTemplate"]["leaderTemplate"]

    (spread,) = leader["spec"]["topologySpreadConstraints"]
    assert "matchLabelKeys" not in spread


def test_a_name_of_which_labels_of_workers_would_be_too_long_is_refused() -> None:
    assert LLMDeployment.parse(resource(metadata__name="n" * 40))
    assert LLMDeployment.parse(resource(metadata__name="n" * 45, spec__parallelism={}))
    with pytest.raises(InvalidInput, match=r"at most 40 characters where spec.parallelism.nodes is above 1"):
        LLMDeployment.parse(resource(metadata__name="n" * 41))


def test_its_name_leaves_the_service_of_the_model_alone() -> None:
    """LeaderWorkerSet makes a Service of its own name."""
    made = objects()

    assert "Service/good-nodes" not in made
    assert "Deployment/good" not in made


def test_where_there_is_none_a_sentence_says_what_to_install() -> None:
    settings = OperatorSettings(leader_worker_sets=False)

    with pytest.raises(
        InvalidInput, match=r"on 2 nodes is a LeaderWorkerSet, which this cluster does not have: install it"
    ):
        kubernetes.render(LLMDeployment.parse(resource()), settings)
    assert kubernetes.render(LLMDeployment.parse(resource(spec__parallelism={})), settings).objects


def test_one_machine_has_one_node() -> None:
    with pytest.raises(InvalidInput, match="this is one machine; set it to 1"):
        process.render(LLMDeployment.parse(resource()), "http://here/v1")


# in plans


def planned(observed: Observed, **changes: Any) -> Plan:
    return plan(
        resource(**{"metadata__generation": 1, **changes}),
        observed,
        lambda d: kubernetes.render(d, OperatorSettings()),
        NOW,
    )


def test_it_is_made_once_and_scaled_by_groups() -> None:
    actions = planned(Observed(status=DeploymentStatus())).actions

    child = Key("LeaderWorkerSet", "good-nodes")
    assert [type(action) for action in actions if action.key == child] == [Create, Scale]
    assert next(action.replicas for action in actions if isinstance(action, Scale)) == 2


@pytest.mark.parametrize("strategy", ["Auto", "SurgeFirst"])
@pytest.mark.parametrize(("replicas", "least"), [(1, 0), (2, 1), (3, 2)])
def test_an_edit_reaches_all_groups_and_one_alone_ends_first(strategy: str, replicas: int, least: int) -> None:
    changes = {"spec__replicas": replicas, "spec__rollout": {"strategy": strategy}}
    actions = planned(Observed(status=DeploymentStatus()), **changes).actions
    made = next(a.manifest for a in actions if isinstance(a, Create) and a.key.kind == "LeaderWorkerSet")
    bounds = made["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]

    roll_out = RollOut(replicas, bounds["maxSurge"], bounds["maxUnavailable"])

    assert roll_out.run()
    assert min(roll_out.serving) == least


def test_one_group_that_surges_would_never_be_replaced() -> None:
    assert not RollOut(1, surge=1, unavailable=0).run()


def test_that_one_group_alone_ends_first_is_said() -> None:
    before = Observed(
        status=DeploymentStatus(revision=RevisionStatus(current="old", last_good="old")),
        workload=Workload(current=True, replicas=1, updated=1, ready=1, updated_ready=1, revision="old", nodes=2),
    )

    progressing = planned(before, spec__replicas=1).status.condition(ConditionType.PROGRESSING)

    assert progressing is not None
    assert progressing.reason == Reason.TERMINATING_FIRST
    assert "before a new one starts, as a LeaderWorkerSet of one group does, and none serves" in progressing.message


@pytest.mark.parametrize(("there", "wanted"), [(1, WIDE), (2, {}), (4, WIDE)])
def test_the_number_of_nodes_is_not_changed_under_engines(there: int, wanted: dict[str, int]) -> None:
    decided = planned(
        Observed(status=DeploymentStatus(), workload=Workload(current=True, nodes=there)), spec__parallelism=wanted
    )

    stalled = decided.status.condition(ConditionType.STALLED)
    assert decided.actions == ()
    assert stalled is not None
    assert f"set it back to {there}, or make another LLMDeployment" in stalled.message


# what is read


def pod(name: str, role: str, group: int, revision: str, *, ready: bool = False, **status: Any) -> dict[str, Any]:
    labels = {
        "quire.dev/llmdeployment": "good", "quire.dev/role": role, "quire.dev/revision": revision,
        "leaderworkerset.sigs.k8s.io/group-index": str(group),
    }  # fmt: skip
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    metadata = {"name": name, "namespace": "default", "uid": name, "labels": labels}
    return {"kind": "Pod", "metadata": metadata, "status": {"conditions": conditions, **status}}


def seen(*pods: dict[str, Any], size: int = 2) -> Observed:
    made, store = groups(), Store()
    made["spec"]["leaderWorkerTemplate"]["size"] = size
    made["metadata"] = {**made["metadata"], "uid": "set", "generation": 1, "resourceVersion": "1"}
    made["spec"] = {**made["spec"], "replicas": 2}
    for each in (resource(), made, *pods):
        store.put(each)
    return observe(KEY, resource(), store, {}, Asked())


REVISION = groups()["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["metadata"]["labels"]["quire.dev/revision"]


def test_the_status_counts_groups() -> None:
    observed = seen(
        pod("good-nodes-0", "engine", 0, REVISION, ready=True),
        pod("good-nodes-0-1", "worker", 0, REVISION, ready=True),
        pod("good-nodes-1", "engine", 1, "old", ready=True),
        pod("good-nodes-1-1", "worker", 1, "old", ready=True),
    )

    workload = observed.workload
    assert (workload.replicas, workload.updated, workload.ready, workload.updated_ready) == (2, 1, 2, 1)
    assert (workload.revision, workload.nodes, workload.unavailable) == (REVISION, 2, 0)
    assert observed.objects[Key("LeaderWorkerSet", "good-nodes")].replicas == 2


def test_a_size_that_was_edited_by_hand_is_put_right() -> None:
    observed = replace(seen(size=3), status=DeploymentStatus())

    decided = planned(observed)

    child = Key("LeaderWorkerSet", "good-nodes")
    (mended,) = [a.manifest for a in decided.actions if isinstance(a, Apply) and a.key == child]
    assert mended["spec"]["leaderWorkerTemplate"]["size"] == 2
    assert decided.status.condition(ConditionType.STALLED) is None


def test_nobody_weighs_groups_for_those_with_the_highest_numbers_go() -> None:
    autoscaling = {"spec__autoscaling": {"mode": "Builtin", "min": 1, "max": 4}}
    leaders = [pod(f"good-nodes-{n}", "engine", n, REVISION, ready=True) for n in (0, 1)]
    idle = [
        EngineLoad(
            name=f"good-nodes-{n}",
            running=0,
            waiting=0,
            kv_usage=0,
            kv_tokens=9,
            max_num_seqs=9,
            preemptions=0,
            finished=0,
        )
        for n in (0, 1)
    ]
    look = Look(replicas=2, ready=2, engines=tuple(idle))
    decision = replace(decide(look, Policy(least=1, most=4), Memory(), 1.0), desired=1)

    actions = planned(replace(seen(*leaders), status=DeploymentStatus(), decision=decision), **autoscaling).actions

    assert [type(a) for a in actions if isinstance(a, Weigh | Scale)] == [Scale]


def ended(code: int, cause: str = "Error", message: str = "", *, running: bool = True) -> dict[str, Any]:
    """The status of an engine's container: as it ended last, and what it does now."""
    state: dict[str, Any] = {"running": {}} if running else {"waiting": {"reason": "CrashLoopBackOff"}}
    last = {"terminated": {"exitCode": code, "reason": cause, "message": message}}
    return {"containerStatuses": [{"name": "engine", "state": state, "lastState": last}]}


@pytest.mark.parametrize("running", [True, False])
def test_a_worker_that_ends_again_and_again_is_named_whether_it_runs_just_now_or_not(running: bool) -> None:
    lost = ended(14, message="lost rank 1", running=False)
    killed = ended(137, "OOMKilled", running=running)

    (engine,) = seen(
        pod("good-nodes-0", "engine", 0, REVISION, **lost),
        pod("good-nodes-0-1", "worker", 0, REVISION, ready=running, **killed),
    ).instances

    verdict = trouble(Observed(status=None, instances=(engine,)))
    assert verdict is not None
    assert verdict.reason is Reason.OUT_OF_MEMORY
    assert verdict.message.startswith("good-nodes-0-1: OOMKilled (exit code 137)")


def test_how_a_worker_ended_once_is_no_trouble_while_its_engine_serves() -> None:
    (engine,) = seen(
        pod("good-nodes-0", "engine", 0, REVISION, ready=True),
        pod("good-nodes-0-1", "worker", 0, REVISION, ready=True, **ended(14)),
    ).instances

    assert engine.failure is None


def test_what_a_worker_lacks_its_engine_lacks() -> None:
    unplaced = {
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "Insufficient nvidia.com/gpu", "lastTransitionTime": NOW,
    }  # fmt: skip
    lonely = pod("good-nodes-1-1", "worker", 1, REVISION)
    lonely["status"]["conditions"].append(unplaced)

    first, second = seen(
        pod("good-nodes-0", "engine", 0, REVISION), pod("good-nodes-1", "engine", 1, REVISION), lonely
    ).instances

    assert first.no_place is None
    assert second.no_place is not None
    assert second.no_place.message == "Insufficient nvidia.com/gpu"
