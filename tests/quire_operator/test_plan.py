"""The plan: what a resource becomes, and what is said of it, for whatever is observed."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes.resources import bad_resources, good, spoiled
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api import LLMDeployment
from quire_api.reasons import REASONS, ConditionType, Reason
from quire_api.status import DeploymentStatus
from quire_operator.planner.observed import Failure, Instance, Key, NoPlace, ObjectState, Observed, ResolveJob, Workload
from quire_operator.planner.plan import Action, Apply, Create, Delete, Desired, Plan, Scale, digest, plan
from quire_operator.planner.revisions import from_object, revision_id
from quire_operator.reconcile import NameTaken, Refused, ResourceKey, reconcile
from quire_operator.render import kubernetes
from quire_operator.settings import OperatorSettings

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"
UID = "uid-of-the-resource"
SETTINGS = OperatorSettings(engine_image="engine:1")
ANSWER = json.dumps({"revision": "c0ffee", "bytes": 1 << 30, "dtype": "bfloat16"})  # of every source


def render(deployment: LLMDeployment) -> Desired:
    return kubernetes.render(deployment, SETTINGS)


def resource(**changes: Any) -> dict[str, Any]:
    return good(metadata__uid=UID, metadata__generation=1, **changes)


def decide(what: dict[str, Any], observed: Observed, now: str = NOW) -> Plan:
    return plan(what, observed, render, now)


class FakeCluster:
    """Carries plans out, as an API server and its controllers would, and shows the result."""

    def __init__(self) -> None:
        self.observed = Observed(status=None)
        self.resource: dict[str, Any] = {}
        self.revision, self.paused, self.unavailable = "", False, 0  # of the Deployment
        self.refuses: str | None = None
        self.actions: list[Action] = []
        self.statuses: list[DeploymentStatus] = []
        self.jobs: dict[str, ResolveJob] = {}

    def turn(self, what: dict[str, Any], now: str = NOW) -> Plan:
        """One plan, carried out."""
        decided = decide(what, self.observed, now)
        for action in decided.actions:
            self._carry_out(action)
        self.observed = replace(self.observed, status=decided.status)
        return decided

    def forget(self) -> None:
        """As an operator does that was started anew."""
        objects = {key: replace(state, applied=None) for key, state in self.observed.objects.items()}
        self.observed = replace(self.observed, objects=objects)

    def run(self, workload: Workload, *instances: Instance) -> None:
        workload = replace(workload, revision=self.revision, paused=self.paused, unavailable=self.unavailable)
        self.observed = replace(self.observed, workload=workload, instances=instances)

    def reconcile(self, what: dict[str, Any]) -> float | None:
        """A whole turn of the loop, through the real one."""
        self.resource, self.actions, self.statuses = what, [], []
        return asyncio.run(reconcile(ResourceKey("default", "good"), self, lambda: datetime(2026, 1, 1, tzinfo=UTC)))

    # what `reconcile` asks for

    def observe(self, key: ResourceKey) -> tuple[dict[str, Any], Observed]:
        return self.resource, self.observed

    def render(self, deployment: LLMDeployment) -> Desired:
        return render(deployment)

    async def execute(self, key: ResourceKey, action: Action) -> None:
        if self.refuses == action.key.kind:
            raise Refused(f"{action.key.kind}: exceeded quota")
        if self.refuses == f"name of {action.key.kind}":
            raise NameTaken(action.key, "Deployment web")
        self.actions.append(action)
        self._carry_out(action)

    async def write_status(self, key: ResourceKey, status: DeploymentStatus) -> None:
        self.statuses.append(status)
        self.observed = replace(self.observed, status=status)

    def _carry_out(self, action: Action) -> None:
        objects = dict(self.observed.objects)
        match action:
            case Create(key, manifest):
                assert key not in objects
                replicas = 0 if key.kind == "Deployment" else None
                objects[key] = ObjectState(
                    uid=f"uid-{key.name}", owner_uid=UID, applied=digest(manifest), replicas=replicas
                )
            case Apply(key, manifest):
                objects[key] = replace(objects[key], applied=digest(manifest))
            case Scale(key, count):
                objects[key] = replace(objects[key], replicas=count)
            case Delete(key, uid):
                assert objects.pop(key).uid == uid
        self.observed = replace(self.observed, objects=objects)
        self._keep(action)

    def _keep(self, action: Action) -> None:
        """What a cluster would show of the template that was applied, and of those that are kept."""
        observed = self.observed
        history = {r.id: r for r in observed.history}
        match action:
            case Create(Key("Job", name), manifest):
                labels = manifest["metadata"]["labels"]
                template, attempt = labels["quire.dev/revision"], int(labels["quire.dev/attempt"])
                self.jobs[name] = ResolveJob(template=template, attempt=attempt, answer=ANSWER, ended=NOW)
            case Delete(Key("Job", name), _):
                del self.jobs[name]
            case Create(Key("ControllerRevision"), manifest) | Apply(Key("ControllerRevision"), manifest):
                revision = from_object(manifest)
                assert revision is not None
                history[revision.id] = revision
            case Delete(Key("ControllerRevision", name), _):
                del history[name.rpartition("-")[2]]
            case Create(Key("Deployment"), manifest) | Apply(Key("Deployment"), manifest):
                self.revision = revision_id(manifest["spec"]["template"])
                self.paused = manifest["spec"].get("paused", False)
                self.unavailable = (
                    manifest["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxUnavailable", 0)
                )
                observed = replace(observed, workload=replace(observed.workload, revision=self.revision))
        self.observed = replace(observed, history=tuple(history.values()), jobs=tuple(self.jobs.values()))


def serving(count: int) -> Workload:
    return Workload(current=True, replicas=count, updated=count, ready=count, updated_ready=count)


def conditions(status: DeploymentStatus) -> dict[str, tuple[str, str]]:
    """Those of the verdict."""
    return {c.type: (c.status, c.reason) for c in status.conditions if c.type in ("Ready", "Reconciling", "Stalled")}


def said(status: DeploymentStatus, kind: ConditionType) -> tuple[str, str] | None:
    """Of one condition."""
    found = status.condition(kind)
    return None if found is None else (found.status, found.reason)


def settled(**changes: Any) -> tuple[FakeCluster, dict[str, Any]]:
    """A cluster on which the resource serves."""
    cluster, what = FakeCluster(), resource(**changes)
    for _ in range(2):
        cluster.turn(what)
    cluster.run(serving(what["spec"].get("replicas", 1)))
    cluster.turn(what)
    return cluster, what


def test_an_hpa_is_made_in_its_mode_and_deleted_when_the_mode_changes() -> None:
    cluster, key = FakeCluster(), Key("HorizontalPodAutoscaler", "good")
    cluster.turn(resource())
    made = cluster.turn(resource(spec__autoscaling={"mode": "HPA", "max": 3}))
    at_rest = cluster.turn(resource(spec__autoscaling={"mode": "HPA", "max": 3}))

    changed = cluster.turn(resource(spec__autoscaling={"mode": "External"}))

    assert [type(action) for action in made.actions if action.key == key] == [Create]
    assert at_rest.actions == ()
    assert [type(action) for action in changed.actions if action.key == key] == [Delete]
    assert key not in cluster.observed.objects


def test_the_first_word_is_that_nothing_is_known_yet() -> None:
    """A resource without status counts as healthy for kstatus, so it gets one before anything else."""
    decided = decide(resource(), Observed(status=None))

    assert decided.actions == ()
    assert conditions(decided.status) == {"Ready": ("Unknown", "NotObserved"), "Reconciling": ("True", "NotObserved")}
    assert decided.requeue_after == 0


def test_a_new_resource_is_created_and_scaled_in_order() -> None:
    cluster = FakeCluster()
    cluster.turn(resource(spec__replicas=2))

    decided = cluster.turn(resource(spec__replicas=2))

    assert [(type(a).__name__, a.key.kind) for a in decided.actions] == [
        ("Create", "ServiceAccount"), ("Create", "Service"), ("Create", "Service"), ("Create", "NetworkPolicy"),
        ("Create", "PodDisruptionBudget"), ("Create", "ControllerRevision"), ("Create", "Deployment"), ("Scale", "Deployment"),
    ]  # fmt: skip
    assert conditions(decided.status) == {"Ready": ("False", "Starting"), "Reconciling": ("True", "Starting")}


def test_replicas_are_never_part_of_what_is_applied() -> None:
    for manifest in render(LLMDeployment.parse(resource(spec__replicas=3))).objects:
        assert "replicas" not in manifest.get("spec", {})


engines = st.fixed_dictionaries(
    {},
    optional={
        "maxNumSeqs": st.integers(1, 256),
        "maxModelLen": st.sampled_from([256, 4096]),
        "dtype": st.sampled_from(["auto", "float32"]),
        "kvCacheGiB": st.sampled_from([0.1, 2]),
        "schedulingPolicy": st.sampled_from(["fcfs", "priority"]),
        "enablePrefixCaching": st.booleans(),
        "swapSpaceGiB": st.sampled_from([0, 4]),
        "toolCallParser": st.just("hermes"),
        "seed": st.integers(0, 3),
    },
)
scaling = st.one_of(
    st.fixed_dictionaries({"mode": st.sampled_from(["Manual", "External"])}),
    st.builds(
        lambda least, more: {"mode": "Builtin", "min": least, "max": least + more}, st.integers(1, 2), st.integers(0, 2)
    ),
    st.just({"mode": "Builtin", "min": 0, "max": 2, "scaleToZero": {"idleAfter": "5m", "wake": {"maxQueued": 9}}}),
)
placing = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": st.dictionaries(st.sampled_from(["pool", "zone"]), st.sampled_from("ab")),
        "tolerations": st.lists(st.just({"key": "gpu", "operator": "Exists"}), max_size=1),
        "topologySpread": st.sampled_from(["zone", "node", "none"]),
        "priorityClassName": st.sampled_from(["", "high"]),
    },
)
templates = st.sampled_from(
    [
        {},
        {"metadata": {"annotations": {"a": "b"}, "labels": {"team": "a"}}},
        {
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [{"name": "engine", "args": ["--seed=1"]}],
            }
        },
        {"spec": {"containers": [{"name": "beside", "image": "beside:1"}], "volumes": [{"name": "v", "emptyDir": {}}]}},
    ]
)
fetched = st.fixed_dictionaries(
    {"uri": st.sampled_from(["hf://acme/model", "hf://acme/model@main", "s3://bucket/prefix"])},
    optional={"secretRef": st.just({"name": "token"}), "include": st.just(["*.safetensors"])},
)
sources = st.one_of(
    st.builds(lambda uri: ({"uri": uri}, {}), st.sampled_from(["builtin://quire-tiny", "file:///m", "pvc://claim/m"])),
    st.tuples(
        fetched,
        st.fixed_dictionaries(
            {}, optional={"cache": st.just({"claimName": "models"}), "verify": st.sampled_from(["Manifest", "Always"])}
        ),
    ),
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "spec.replicas": st.integers(0, 3),
        "spec.image": st.sampled_from(["a:1", "b:2"]),
        "spec.engine": engines,
        "spec.model.aliases": st.lists(st.sampled_from("abc"), unique=True),
        "source": sources,  # and what becomes of it
        "spec.accelerator.profile": st.sampled_from(["cpu", "nvidia"]),
        "spec.podTemplate": templates,
        "spec.drain.timeout": st.sampled_from(["10s", "5m"]),
        "spec.health.startupTimeout": st.sampled_from(["1m", "20m"]),
        "spec.rollout": st.fixed_dictionaries(
            {"strategy": st.sampled_from(["Auto", "SurgeFirst", "TerminateFirst"]), "autoRollback": st.booleans()}
        ),
        "spec.autoscaling": scaling,
        "spec.access": st.fixed_dictionaries({"groups": st.lists(st.sampled_from(["a", "b"]), unique=True)}),
        "spec.routing": st.fixed_dictionaries({"strategy": st.sampled_from(["LeastLoaded", "RoundRobin"])}),
        "spec.scheduling": placing,
        "spec.disruption": st.fixed_dictionaries({"maxUnavailable": st.integers(1, 2)}),
        "spec.suspend": st.booleans(),
        "spec.paused": st.sampled_from([False, False, True]),
        "metadata.annotations": st.just({"quire.dev/upgrade": "true"}),
    },
)


def edited(edit: dict[str, Any], generation: int) -> dict[str, Any]:
    edit = dict(edit)
    source, weights = edit.pop("source", (None, None))
    if source is not None:
        edit |= {"spec.model.source": source, "spec.weights": weights}
    return spoiled({**edit, "metadata.uid": UID, "metadata.generation": generation})


@settings(deadline=None, max_examples=300)  # a busy machine is no fault of a plan
@given(st.lists(st.tuples(changes, st.booleans()), min_size=1, max_size=4))
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(edits: list[tuple[dict[str, Any], bool]]) -> None:
    """Whatever a resource says, after whatever it said before, and whether or not the operator was started anew."""
    cluster = FakeCluster()
    for generation, (edit, restart) in enumerate(edits, start=1):
        what = edited(edit, generation)
        LLMDeployment.parse(what)
        if restart:
            cluster.forget()
        for _ in range(
            8
        ):  # the source is asked, pinned, rolled out, and the templates that nothing returns to forgotten
            cluster.turn(what)
            deployment = cluster.observed.objects.get(Key("Deployment", "good"))
            cluster.run(serving(deployment.replicas or 0 if deployment is not None else 0))
        before = cluster.observed

        again = cluster.turn(what, LATER)

        assert again.actions == ()
        assert again.status == before.status
        if not what["spec"].get("paused"):
            assert conditions(again.status)["Ready"][0] == "True", again.status


def test_an_edit_applies_the_deployment_alone() -> None:
    cluster, _ = settled()

    decided = cluster.turn(resource(spec__engine__maxNumSeqs=32))

    assert [(type(a).__name__, a.key.kind) for a in decided.actions] == [
        ("Create", "ControllerRevision"), ("Apply", "Deployment"),
    ]  # fmt: skip
    assert conditions(decided.status)["Ready"] == ("False", "RollingOut")


def test_a_child_that_was_edited_is_applied_again() -> None:
    cluster, what = settled()
    key = Key("Service", "good")
    cluster.observed = replace(
        cluster.observed,
        objects={**cluster.observed.objects, key: replace(cluster.observed.objects[key], applied=None)},
    )

    decided = cluster.turn(what)

    assert [(type(a).__name__, a.key) for a in decided.actions] == [("Apply", key)]


def test_a_child_that_is_no_longer_wanted_is_deleted_by_its_uid() -> None:
    cluster, what = settled()
    cluster.observed = replace(
        cluster.observed,
        objects={
            **cluster.observed.objects,
            Key("ConfigMap", "old"): ObjectState(uid="u7", owner_uid=UID, applied=None),
        },
    )

    assert cluster.turn(what).actions == (Delete(Key("ConfigMap", "old"), "u7"),)


@pytest.mark.parametrize("case", bad_resources(), ids=lambda case: case["name"])
def test_a_bad_spec_is_a_condition_and_no_action(case: dict[str, Any]) -> None:
    cluster, _ = settled()
    bad = spoiled({**case["set"], "metadata.uid": UID, "metadata.generation": 2})

    decided = decide(bad, cluster.observed, LATER)

    assert decided.actions == ()
    assert conditions(decided.status) == {"Ready": ("False", "InvalidSpec"), "Stalled": ("True", "InvalidSpec")}
    assert case.get("quire", case.get("says")) in decided.status.conditions[0].message
    assert decided.status.observed_generation == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"spec.accelerator.profile": "tpu"}, "there is no profile 'tpu' here"),
        ({"spec.podTemplate": {"spec": {"containers": 1}}}, "spec.podTemplate.spec.containers: must be a list"),
    ],
)
def test_what_cannot_be_rendered_is_a_condition_and_no_action(change: dict[str, Any], says: str) -> None:
    cluster, _ = settled()

    decided = decide(spoiled({**change, "metadata.uid": UID, "metadata.generation": 2}), cluster.observed, LATER)

    assert decided.actions == ()
    assert conditions(decided.status)["Stalled"] == ("True", "InvalidSpec")
    assert says in decided.status.conditions[0].message


@pytest.mark.parametrize("seen_by_watch", [True, False])
def test_a_name_that_is_taken_is_a_condition_and_no_action(seen_by_watch: bool) -> None:
    cluster = FakeCluster()
    cluster.turn(resource())
    key = Key("Service", "good")
    if seen_by_watch:
        cluster.observed = replace(
            cluster.observed, objects={key: ObjectState(uid="x", owner_uid="other", applied=None)}
        )
    else:
        cluster.observed = replace(cluster.observed, conflicts={key: "Deployment web"})

    decided = cluster.turn(resource())

    assert decided.actions == ()
    assert conditions(decided.status)["Stalled"] == ("True", "NameConflict")
    assert "Service good belongs to" in decided.status.conditions[0].message
    assert decided.requeue_after is not None


@pytest.mark.parametrize(
    ("workload", "instances", "ready", "second"),
    [
        (serving(2), (), ("True", "Serving"), None),
        (Workload(current=True, replicas=2, updated=2), (), ("False", "Starting"), "Reconciling"),
        (Workload(current=True, replicas=3, updated=1, ready=2), (), ("False", "RollingOut"), "Reconciling"),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="boom", exit_code=1, again=True),),
            ("False", "CrashLoop"),
            "Reconciling",
        ),
        (
            Workload(current=True, replicas=2, updated=1, refused="pods are forbidden: exceeded quota: gpus"),
            (),
            ("False", "QuotaExceeded"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="boom", exit_code=1),),
            ("False", "Restarting"),
            "Reconciling",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="gone", exit_code=10),),
            ("False", "ModelNotFound"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="big", exit_code=11),),
            ("False", "OutOfMemory"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="bad", exit_code=12),),
            ("False", "EngineRejectedConfig"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="gpu", exit_code=13),),
            ("False", "DeviceUnavailable"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="", exit_code=137, cause="OOMKilled"),),
            ("False", "OutOfMemory"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="denied", cause="ImagePullBackOff"),),
            ("False", "ImagePullDenied"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="ModelAccessDenied: gated", exit_code=21),),
            ("False", "ModelAccessDenied"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="InsufficientStorage: no room", exit_code=22),),
            ("False", "InsufficientStorage"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="WeightsCorrupt: hash", exit_code=23),),
            ("False", "WeightsCorrupt"),
            "Stalled",
        ),
        (
            Workload(current=True, replicas=2, updated=2),
            (Failure(message="SourceUnreachable: no answer", exit_code=24, again=True),),
            ("False", "SourceUnreachable"),
            "Reconciling",
        ),
    ],
)
def test_what_is_seen_is_what_is_said(
    workload: Workload, instances: tuple[Failure, ...], ready: tuple[str, str], second: str | None
) -> None:
    cluster, what = settled(spec__replicas=2)
    cluster.run(workload, *(Instance(name=f"pod-{n}", ready=False, failure=f) for n, f in enumerate(instances)))

    told = conditions(cluster.turn(what).status)

    assert told == {"Ready": ready, **({second: ("True", ready[1])} if second else {})}


def test_an_edit_is_rolling_out_until_the_cluster_has_taken_notice() -> None:
    cluster, _ = settled()
    edited = good(metadata__uid=UID, metadata__generation=2, spec__engine__maxNumSeqs=32)
    cluster.turn(edited)
    cluster.run(replace(serving(1), current=False))

    assert conditions(cluster.turn(edited).status)["Ready"] == ("False", "RollingOut")


@pytest.mark.parametrize(
    ("failure", "reason"), [(None, "ReplicasMissing"), (Failure(message="big", exit_code=11), "OutOfMemory")]
)
def test_one_engine_lost_is_degraded_and_still_ready(failure: Failure | None, reason: str) -> None:
    cluster, what = settled(spec__replicas=2)
    lost = Workload(current=True, replicas=2, updated=2, ready=1, updated_ready=1)
    cluster.run(lost, Instance(name="p", ready=False, failure=failure))

    status = cluster.turn(what).status

    assert conditions(status) == {"Ready": ("True", "Serving")}
    assert said(status, ConditionType.DEGRADED) == ("True", reason)
    assert said(status, ConditionType.AVAILABLE) == ("True", "EnginesServe")


def test_more_replicas_by_hand_are_not_ready_until_they_serve() -> None:
    cluster, what = settled()
    what = good(metadata__uid=UID, metadata__generation=2, spec__replicas=2)
    cluster.turn(what)
    cluster.run(serving(1))

    assert conditions(cluster.turn(what).status)["Ready"] == ("False", "Scaling")


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu", "free a gpu"),
        ("0/3 nodes are available: 3 Insufficient memory", "free what it lacks"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}", "take the taint off"),
        ("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector", "label a node"),
        ("pod has unbound immediate PersistentVolumeClaims", "why the claim is not bound"),
        ('persistentvolumeclaim "models" not found: PersistentVolumeClaim', "create the claim"),
        ("something new", "make room"),
    ],
)
def test_an_engine_without_a_place_is_told_with_what_makes_room(words: str, fix: str) -> None:
    cluster, what = settled()
    cluster.run(
        Workload(current=True, replicas=1, updated=1),
        Instance(name="p", ready=False, no_place=NoPlace(since=NOW, message=words)),
    )

    status = cluster.turn(what).status

    assert conditions(status)["Reconciling"] == ("True", "Unschedulable")
    assert words in status.conditions[0].message
    assert fix in status.conditions[0].message


def test_a_failure_is_told_in_the_engines_own_words() -> None:
    cluster, what = settled()
    failure = Failure(message="quire serve: no model at /x: there is no such folder", exit_code=10)
    cluster.run(Workload(current=True, replicas=1, updated=1), Instance(name="pod-0", ready=False, failure=failure))

    message = cluster.turn(what).status.conditions[0].message

    assert message == "pod-0: quire serve: no model at /x: there is no such folder (exit code 10)"


def test_an_old_failure_does_not_outlive_recovery() -> None:
    cluster, what = settled()
    cluster.run(serving(1), Instance(name="pod-0", ready=True, failure=Failure(message="once", exit_code=10)))

    assert conditions(cluster.turn(what).status) == {"Ready": ("True", "Serving")}


def test_zero_replicas_is_ready_once_nothing_runs() -> None:
    cluster, what = settled(spec__replicas=0)
    cluster.run(Workload(current=True, replicas=1, updated=1, ready=1, updated_ready=1))
    going = conditions(cluster.turn(what).status)
    cluster.run(Workload(current=True))

    gone = conditions(cluster.turn(what).status)

    assert going["Ready"] == ("False", "Scaling")
    assert gone == {"Ready": ("True", "ScaledToZero")}


def test_a_restart_of_the_operator_applies_again_and_says_nothing_new() -> None:
    cluster, what = settled()
    cluster.forget()

    again = cluster.reconcile(what)

    assert [type(a).__name__ for a in cluster.actions] == ["Apply"] * 6
    assert cluster.statuses == []
    assert again is None


def test_a_new_resource_is_told_as_starting_once_it_is_made() -> None:
    cluster = FakeCluster()
    first = cluster.reconcile(resource())
    cluster.reconcile(resource())

    assert first == 0
    assert [conditions(s)["Ready"] for s in cluster.statuses] == [("False", "Starting")]


def test_what_the_api_server_refuses_is_said_and_tried_again() -> None:
    cluster = FakeCluster()
    cluster.reconcile(resource())
    cluster.refuses = "Service"

    with pytest.raises(Refused, match="exceeded quota"):
        cluster.reconcile(resource())

    assert conditions(cluster.statuses[-1]) == {
        "Ready": ("False", "WriteRefused"),
        "Reconciling": ("True", "WriteRefused"),
    }
    assert "exceeded quota" in cluster.statuses[-1].conditions[0].message


@pytest.mark.parametrize("kind", ["Service", "ControllerRevision"])
def test_a_name_found_taken_while_creating_is_a_condition(kind: str) -> None:
    cluster = FakeCluster()
    cluster.reconcile(resource())
    cluster.refuses = f"name of {kind}"

    again = cluster.reconcile(resource())

    assert conditions(cluster.statuses[-1])["Stalled"] == ("True", "NameConflict")
    assert "belongs to Deployment web" in cluster.statuses[-1].conditions[0].message
    assert again is not None


def test_a_fix_is_not_judged_by_the_pods_it_replaces() -> None:
    cluster, what = settled()
    gone = Failure(message="gone", exit_code=10)
    cluster.run(
        Workload(current=True, replicas=2, updated=1), Instance(name="old", ready=False, current=False, failure=gone)
    )

    assert conditions(cluster.turn(what).status)["Ready"] == ("False", "RollingOut")


def test_what_a_deleted_namesake_left_is_waited_for() -> None:
    cluster = FakeCluster()
    cluster.turn(resource())
    left = ObjectState(uid="x", owner_uid="older", applied=None, of_predecessor=True)
    cluster.observed = replace(cluster.observed, objects={Key("Service", "good"): left})

    decided = cluster.turn(resource())

    assert decided.actions == ()
    assert conditions(decided.status) == {"Ready": ("False", "Starting"), "Reconciling": ("True", "Starting")}
    assert decided.requeue_after is not None


def test_somebody_elses_object_with_our_labels_is_left_alone() -> None:
    cluster, what = settled()
    exposed = ObjectState(uid="lb", owner_uid=None, applied=None)
    cluster.observed = replace(
        cluster.observed, objects={**cluster.observed.objects, Key("Service", "good-lb"): exposed}
    )

    assert cluster.turn(what).actions == ()


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    cluster, what = settled()
    since = cluster.observed.status and cluster.observed.status.condition(ConditionType.READY)
    assert since is not None

    same = cluster.turn(what, LATER).status.condition(ConditionType.READY)
    cluster.run(Workload(current=True, replicas=1, updated=1))
    changed = cluster.turn(what, LATER).status.condition(ConditionType.READY)

    assert same is not None
    assert changed is not None
    assert (same.last_transition_time, changed.last_transition_time) == (since.last_transition_time, LATER)


workloads = st.builds(
    Workload,
    current=st.booleans(),
    replicas=st.integers(0, 4),
    updated=st.integers(0, 4),
    ready=st.integers(0, 4),
    updated_ready=st.integers(0, 4),
)
failures = st.none() | st.builds(
    Failure,
    message=st.text(max_size=3000),
    exit_code=st.none() | st.integers(0, 255),
    cause=st.sampled_from(["", "OOMKilled", "Error"]),
)


@given(
    workloads,
    st.lists(st.builds(Instance, name=st.just("p"), ready=st.booleans(), failure=failures), max_size=3),
    st.integers(0, 3),
)
def test_whatever_is_observed_the_status_is_one_clear_verdict(
    workload: Workload, instances: list[Instance], wanted: int
) -> None:
    cluster, what = settled(spec__replicas=wanted)
    cluster.run(workload, *instances)

    status = cluster.turn(what).status
    verdict = conditions(status)

    assert len(verdict) == (1 if verdict["Ready"][0] == "True" else 2)
    for condition in status.conditions:
        assert ConditionType(condition.type) in REASONS[Reason(condition.reason)].conditions
    if verdict["Ready"] == ("True", "Serving") and workload.updated_ready < wanted:
        assert said(status, ConditionType.DEGRADED) is not None
    json.dumps(verdict)
