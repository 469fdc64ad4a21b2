"""Before any engine pod: the source is asked by a Job, its revision pinned, and what does not fit is never started."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes.kstatus import kstatus_of
from fakes.resources import good
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api import LLMDeployment
from quire_api.engine import EngineOptions
from quire_api.footprint import Footprint
from quire_api.resolved import ModelStatus
from quire_api.status import DeploymentStatus
from quire_operator.planner.fit import GIB, Need, Room, misfit, need_of, quantity_bytes
from quire_operator.planner.observed import Failure, Key, ObjectState, Observed, ResolveJob, Workload
from quire_operator.planner.plan import Apply, Create, Delete, Desired, Plan, Scale, digest, plan
from quire_operator.planner.revisions import from_object
from quire_operator.render import kubernetes
from quire_operator.settings import PROFILES, AcceleratorProfile, OperatorSettings

UID = "uid-of-the-resource"
START = datetime(2026, 1, 1, tzinfo=UTC)
PROFILE = AcceleratorProfile(memory_gib=20)
SETTINGS = OperatorSettings(engine_image="engine:1", profiles={**PROFILES, "small": PROFILE})
ANSWER = json.dumps(
    {"revision": "c0ffee", "bytes": 16 << 30, "parameters": 8 << 30, "dtype": "bfloat16", "kvBytesPerToken": 1 << 17}
)
DENIED = Failure(message="ModelAccessDenied: gated", exit_code=21, cause="Error", container="weights")
UNREACHABLE = Failure(message="SourceUnreachable: no answer", exit_code=24, cause="Error", container="weights")
SERVING = Workload(current=True, replicas=1, updated=1, ready=1, updated_ready=1)


def render(deployment: LLMDeployment) -> Desired:
    return kubernetes.render(deployment, SETTINGS)


def resource(uri: str = "hf://acme/model", **changes: Any) -> dict[str, Any]:
    return good(
        metadata__uid=UID, metadata__generation=1,
        **{"spec__model": {"source": {"uri": uri}}, "spec__accelerator": {"profile": "small"}, "spec__engine": {}, **changes},
    )  # fmt: skip


class World:
    """A cluster whose Jobs end when a test says so."""

    def __init__(self) -> None:
        self.now = START
        self.observed = Observed(status=DeploymentStatus())
        self.manifests: dict[Key, Any] = {}
        self.jobs: dict[str, ResolveJob] = {}

    def turn(self, what: dict[str, Any]) -> Plan:
        decided = plan(what, self.observed, render, self.now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        objects, jobs = dict(self.observed.objects), dict(self.jobs)
        for action in decided.actions:
            match action:
                case Create(key, manifest) | Apply(key, manifest):
                    assert isinstance(action, Apply) == (key in objects)
                    objects[key] = ObjectState(uid=key.name, owner_uid=UID, applied=digest(manifest), replicas=0)
                    self.manifests[key] = manifest
                    if key.kind == "Job":
                        labels = manifest["metadata"]["labels"]
                        template, attempt = labels["quire.dev/revision"], int(labels["quire.dev/attempt"])
                        jobs[key.name] = ResolveJob(template=template, attempt=attempt)
                case Scale(key, count):
                    objects[key] = replace(objects[key], replicas=count)
                case Delete(key, _):
                    del objects[key]
                    jobs.pop(key.name, None)
        self.jobs = jobs
        kept = (from_object(self.manifests[key]) for key in objects if key.kind == "ControllerRevision")
        self.observed = replace(
            self.observed,
            objects=objects,
            jobs=tuple(jobs.values()),
            history=tuple(filter(None, kept)),
            status=decided.status,
        )
        return decided

    def end(self, **how: Any) -> None:
        """The newest Job ends."""
        jobs = dict(self.jobs)
        name = max(jobs, key=lambda name: jobs[name].attempt)
        jobs[name] = replace(jobs[name], ended=self.now.strftime("%Y-%m-%dT%H:%M:%SZ"), **how)
        self.jobs = jobs
        self.observed = replace(self.observed, jobs=tuple(jobs.values()))

    def serve(self) -> None:
        self.observed = replace(self.observed, workload=SERVING)

    def forget(self) -> None:
        objects = {key: replace(state, applied=None) for key, state in self.observed.objects.items()}
        self.observed = replace(self.observed, objects=objects)

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @property
    def fetcher(self) -> list[str]:
        """Command of the container that fetches."""
        pod = self.manifests[Key("Deployment", "good")]["spec"]["template"]["spec"]
        command: list[str] = pod["initContainers"][0]["command"]
        return command


def reason(decided: Plan) -> tuple[str, str]:
    """Of `Ready`, and what stands beside it."""
    ready, *others = decided.status.conditions
    return ready.reason, next((c.type for c in others if c.type in ("Reconciling", "Stalled")), "")


def names(decided: Plan) -> list[str]:
    return [f"{type(action).__name__} {action.key.kind}" for action in decided.actions]


def resolved(what: dict[str, Any]) -> World:
    """A world in which it serves."""
    world = World()
    world.turn(what)
    world.end(answer=ANSWER)
    for _ in range(2):
        world.turn(what)
    world.serve()
    world.turn(what)
    return world


def test_nothing_is_made_of_a_source_before_it_has_answered() -> None:
    world = World()

    first, second = world.turn(resource()), world.turn(resource())

    assert names(first)[-1] == "Create Job"
    assert "Create Deployment" not in names(first)
    assert reason(first) == ("Resolving", "Reconciling")
    assert second.actions == ()


def test_the_answer_is_written_down_before_anything_is_made_of_it() -> None:
    world = World()
    world.turn(resource())
    world.end(answer=ANSWER)

    pinned, made = world.turn(resource()), world.turn(resource())

    assert (pinned.actions, pinned.requeue_after) == ((), 0.0)
    assert pinned.status.model is not None
    assert pinned.status.model.model_dump(by_alias=True) == {
        "source": "hf://acme/model",
        "include": (),
        "revision": "c0ffee",
        "bytes": 16 << 30,
        "parameters": 8 << 30,
        "dtype": "bfloat16",
        "quantization": "",
        "kvBytesPerToken": 1 << 17,
    }
    assert names(made) == ["Create ControllerRevision", "Create Deployment", "Scale Deployment", "Delete Job"]
    assert world.turn(resource()).actions == ()


@pytest.mark.parametrize(
    ("uri", "fetched"),
    [
        ("hf://acme/model", ["hf://acme/model@c0ffee"]),
        ("hf://acme/model@main", ["hf://acme/model@c0ffee"]),
        ("s3://bucket/m", ["s3://bucket/m", "--revision=c0ffee"]),
        ("https://host/m/manifest.json", ["https://host/m/manifest.json", "--revision=c0ffee"]),
    ],
)
def test_engines_fetch_the_revision_that_was_found_and_no_other(uri: str, fetched: list[str]) -> None:
    command = resolved(resource(uri)).fetcher

    assert command == ["quire", "fetch", *fetched, "/weights", "--link=/run/quire/model"]


def test_a_choice_of_files_is_asked_for_and_fetched_and_another_one_is_asked_for_anew() -> None:
    chosen = resource(spec__model={"source": {"uri": "hf://acme/model", "include": ["a*", "b"]}})
    world = resolved(chosen)

    other = world.turn(resource())

    assert world.fetcher[-2:] == ["--include=a*", "--include=b"]
    assert job_of(spec__model=chosen["spec"]["model"])["spec"]["template"]["spec"]["containers"][0]["command"][-2:] == [
        "--include=a*",
        "--include=b",
    ]
    assert names(other) == ["Create Job"]


def test_what_is_not_fetched_is_not_asked_for() -> None:
    world = World()

    assert "Create Job" not in names(world.turn(resource("builtin://quire-tiny")))


def test_an_older_source_serves_on_until_the_new_one_has_answered() -> None:
    world, other = resolved(resource()), resource("hf://acme/other", spec__replicas=2)

    asked = world.turn(other)
    before = world.fetcher
    world.end(answer=ANSWER)
    world.turn(other)
    made = world.turn(other)

    assert names(asked) == ["Create PodDisruptionBudget", "Scale Deployment", "Create Job"]
    assert before[2] == "hf://acme/model@c0ffee"
    assert asked.status.model is not None
    assert asked.status.model.source == "hf://acme/model"
    assert {"Create ControllerRevision", "Apply Deployment", "Delete Job"} <= set(names(made))
    assert world.fetcher[2] == "hf://acme/other@c0ffee"


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (DENIED, ("ModelAccessDenied", "Stalled")),
        (UNREACHABLE, ("SourceUnreachable", "Reconciling")),
        (Failure(message="", cause="DeadlineExceeded", container="weights"), ("Resolving", "Reconciling")),
        (Failure(message="", exit_code=137, cause="OOMKilled", container="weights"), ("OutOfMemory", "Stalled")),
    ],
)
def test_what_a_job_fails_of_is_said(failure: Failure, said: tuple[str, str]) -> None:
    world = World()
    world.turn(resource())
    world.end(failure=failure)

    decided = world.turn(resource())

    assert reason(decided) == said
    assert decided.status.conditions[0].message.startswith("hf://acme/model: container weights: ")


def test_why_a_job_cannot_start_is_said_while_it_waits() -> None:
    world = World()
    world.turn(resource())
    waiting = Failure(message='secret "x" not found', cause="CreateContainerConfigError", container="weights")
    (job,) = world.jobs.values()
    world.observed = replace(world.observed, jobs=(replace(job, failure=waiting),))

    decided = world.turn(resource())

    assert reason(decided) == ("ReferenceNotFound", "Stalled")
    assert decided.actions == ()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("its pod is forbidden: exceeded quota: pods", "QuotaExceeded"),
        ('admission webhook "policy" denied the request: no', "PodRefused"),
        (
            'its pod is forbidden: error looking up service account d/x: serviceaccount "x" not found',
            "ReferenceNotFound",
        ),
    ],
)
def test_who_will_not_have_the_pod_of_a_job_is_said(words: str, why: str) -> None:
    world = World()
    world.turn(resource())
    (job,) = world.jobs.values()
    refused = Failure(message=words, cause="FailedCreate", container="weights")
    world.observed = replace(world.observed, jobs=(replace(job, failure=refused),))

    decided = world.turn(resource())

    assert reason(decided) == (why, "Stalled")
    assert decided.status.conditions[0].message.startswith(f"hf://acme/model: no pod can be made: {words}. ")
    assert decided.actions == ()


def test_an_answer_that_cannot_be_read_is_a_failure() -> None:
    world = World()
    world.turn(resource())
    world.end(answer="usage: quire fetch")

    decided = world.turn(resource())

    assert reason(decided) == ("Resolving", "Reconciling")
    assert "is the image older than the operator?" in decided.status.conditions[0].message
    assert decided.requeue_after == 10.0


def test_it_is_asked_again_later_and_later_and_the_status_does_not_change_its_mind() -> None:
    world = World()
    world.turn(resource())
    pauses: list[float] = []
    said = set()
    for _ in range(8):
        world.end(failure=DENIED)
        waiting = world.turn(resource())
        assert names(waiting)[:1] in ([], ["Delete Job"])  # the one before
        assert waiting.requeue_after is not None
        pauses.append(waiting.requeue_after)
        world.wait(waiting.requeue_after)
        again = world.turn(resource())
        assert names(again) == ["Create Job"]
        world.turn(resource())
        assert len(world.jobs) == 2
        said |= {waiting.status, again.status}

    assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]
    assert len({status.conditions for status in said}) == 1


def test_another_source_is_asked_at_once_whatever_the_last_one_did() -> None:
    world = World()
    world.turn(resource())
    world.end(failure=DENIED)
    world.turn(resource())

    decided = world.turn(resource("hf://acme/other"))

    assert names(decided) == ["Create Job", "Delete Job"]
    assert reason(decided) == ("Resolving", "Reconciling")


def test_what_does_not_fit_changes_nothing_and_says_the_numbers() -> None:
    world = resolved(resource())
    too_long = resource(spec__engine={"maxModelLen": 40960})

    decided = world.turn(too_long)
    mended = world.turn(resource(spec__engine={"maxModelLen": 32768}))

    assert decided.actions == ()
    assert reason(decided) == ("DoesNotFit", "Stalled")
    assert kstatus_of(decided.status, generation=1) == "Failed"
    assert kstatus_of(decided.status, generation=2) == "InProgress"
    assert decided.status.conditions[0].message == (
        "an engine needs 16.00 GiB for the weights and 5.00 GiB for the KV cache, and a nvidia.com/gpu of profile small has "
        "20.00 GiB: lower maxModelLen or kvCacheGiB, take a smaller model, or give it more memory"
    )
    assert "Apply Deployment" in names(mended)


def test_on_a_cpu_the_limit_of_the_container_is_what_there_is() -> None:
    limited = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {"memory": "12Gi"}}}]}}
    world = World()
    what = resource(spec__accelerator={"profile": "cpu"}, spec__podTemplate=limited)
    world.turn(what)
    world.end(answer=ANSWER)
    world.turn(what)

    decided = world.turn(what)

    assert reason(decided) == ("DoesNotFit", "Stalled")
    assert "the memory limit of its container has 12.00 GiB" in decided.status.conditions[0].message
    assert "Create Deployment" not in names(decided)


def rolled_out(world: World) -> str:
    """The revision that the Deployment was given last, which now is what runs."""
    template = world.manifests[Key("Deployment", "good")]["spec"]["template"]
    live = template["metadata"]["labels"]["quire.dev/revision"]
    world.observed = replace(world.observed, workload=replace(SERVING, revision=live))
    return str(live)


def test_what_has_not_proved_good_goes_back_when_another_source_is_asked_for() -> None:
    """Its deadline would never come."""
    world = resolved(resource())
    good_one = rolled_out(world)
    world.turn(resource())
    world.turn(resource(spec__engine={"maxNumSeqs": 7}))
    bad_one = rolled_out(world)
    world.observed = replace(world.observed, workload=replace(world.observed.workload, ready=0, updated_ready=0))

    asked = world.turn(resource("hf://acme/other"))

    assert bad_one != good_one
    assert reason(asked) == ("Resolving", "Reconciling")
    assert "Apply Deployment" in names(asked)
    assert rolled_out(world) == good_one
    assert "Apply Deployment" not in names(world.turn(resource("hf://acme/other")))


def test_a_source_that_has_moved_is_another_revision() -> None:
    world, there, away = resolved(resource()), resource(), resource("builtin://quire-tiny")
    world.turn(there)
    first = rolled_out(world)
    for _ in range(2):
        world.turn(away)
        rolled_out(world)

    world.turn(there)
    world.end(answer=ANSWER.replace("c0ffee", "facade"))
    for _ in range(2):
        world.turn(there)

    assert rolled_out(world) != first
    assert world.fetcher[2] == "hf://acme/model@facade"


def going_over_to(other: dict[str, Any]) -> World:
    """A world in which another source has answered, and its engines are being started."""
    world = resolved(resource())
    rolled_out(world)
    world.turn(resource())
    world.turn(other)
    world.end(answer=ANSWER.replace("c0ffee", "facade"))
    for _ in range(2):
        world.turn(other)
    return world


def starting(world: World) -> None:
    """A new engine is there beside the old one, and does not serve."""
    live = rolled_out(world)
    world.observed = replace(
        world.observed, workload=Workload(current=True, replicas=2, updated=1, ready=1, updated_ready=0, revision=live)
    )


@pytest.mark.parametrize("other", ["hf://acme/other", "builtin://quire-tiny"])
def test_who_takes_another_source_back_is_not_asked_again_while_its_template_is_kept(other: str) -> None:
    world = resolved(resource())
    rolled_out(world)
    world.turn(resource())
    for _ in range(3):
        world.turn(resource(other))
        if world.jobs:
            world.end(answer=ANSWER.replace("c0ffee", "facade"))
    starting(world)
    world.turn(resource(other))

    back = world.turn(resource())

    assert "Create Job" not in names(back)
    assert "Apply Deployment" in names(back)
    assert world.fetcher[2] == "hf://acme/model@c0ffee"
    assert back.status.model is not None
    assert back.status.model.revision == "c0ffee"


def test_before_another_source_has_answered_it_can_be_taken_back_without_asking() -> None:
    world = resolved(resource())
    rolled_out(world)
    world.turn(resource())
    world.turn(resource("hf://acme/other"))

    back = world.turn(resource())

    assert names(back) == ["Delete Job"]
    assert reason(back) == ("Serving", "")


def test_after_a_roll_back_the_status_tells_of_the_model_that_runs_and_nobody_is_asked() -> None:
    other = resource("hf://acme/other")
    world = going_over_to(other)
    starting(world)
    world.turn(other)
    wanted = world.observed.status.model if world.observed.status else None
    world.wait(3600)

    world.turn(other)
    back = world.turn(other)
    rolled_out(world)
    rest = world.turn(other)

    assert wanted is not None
    assert wanted.revision == "facade"
    assert reason(back) == ("RolledBack", "Stalled")
    for told in (back, rest):
        assert told.status.model is not None
        assert (told.status.model.source, told.status.model.revision) == ("hf://acme/model", "c0ffee")
        assert "Create Job" not in names(told)
    assert world.turn(other).actions == ()


def test_a_template_from_before_answers_were_kept_with_it_is_left_as_it_is() -> None:
    """The data of a ControllerRevision cannot be changed."""
    world = resolved(resource())
    key = next(key for key in world.manifests if key.kind == "ControllerRevision")
    old = {**world.manifests[key], "data": {"template": world.manifests[key]["data"]["template"]}}
    world.manifests[key] = old
    rolled_out(world)
    world.observed = replace(world.observed, history=(from_object(old),))
    world.forget()

    world.turn(resource())

    assert world.manifests[key]["data"] == old["data"]
    assert reason(world.turn(resource("hf://acme/other"))) == ("Resolving", "Reconciling")


def test_who_is_suspended_is_asked_nothing() -> None:
    world = World()

    decided = world.turn(resource(spec__suspend=True))

    assert "Create Job" not in names(decided)
    assert reason(decided) == ("Suspended", "")


TO_TOOLS = {"": "Current", "Reconciling": "InProgress", "Stalled": "Failed"}
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("source"), st.sampled_from(["hf://acme/model", "s3://bucket/m", "builtin://quire-tiny"])),
        st.tuples(st.just("length"), st.sampled_from([1024, 100_000])),
        st.tuples(st.just("replicas"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.sampled_from([ANSWER, "nonsense", DENIED, UNREACHABLE])),
        st.tuples(st.just("wait"), st.sampled_from([1, 60, 400])),
        st.tuples(st.just("restart"), st.none()),
    ),
    max_size=12,
)


@given(EVENTS)
@settings(deadline=None)  # a busy machine is no fault of a plan
def test_whatever_happens_engines_are_never_taken_away_and_all_comes_to_rest(events: list[tuple[str, Any]]) -> None:
    world, what = World(), resource()
    for kind, value in events:
        if kind == "source":
            what = {**what, "spec": {**what["spec"], "model": {"source": {"uri": value}}}}
        elif kind == "length":
            what = {**what, "spec": {**what["spec"], "engine": {"maxModelLen": value}}}
        elif kind == "replicas":
            what = {**what, "spec": {**what["spec"], "replicas": value}}
        elif kind == "end" and world.jobs:
            world.end(**({"answer": value} if isinstance(value, str) else {"failure": value}))
        elif kind == "wait":
            world.wait(value)
        elif kind == "restart":  # of the operator, which then does not know what it has applied
            world.forget()
        decided = world.turn(what)
        assert "Delete Deployment" not in names(decided)
        assert len(world.jobs) <= 2
        assert kstatus_of(decided.status, generation=1) == TO_TOOLS[reason(decided)[1]]
        assert (reason(decided)[0] == "DoesNotFit") <= (names(decided).count("Apply Deployment") == 0)

    fitting = {**what, "spec": {**what["spec"], "engine": {"maxModelLen": 1024}}}
    for _ in range(3):
        world.turn(fitting)
        if world.jobs:
            world.end(answer=ANSWER, failure=None)
    world.turn(fitting)

    assert world.turn(fitting).actions == ()
    assert not world.jobs
    status, source = world.observed.status, what["spec"]["model"]["source"]["uri"]
    assert status is not None
    assert (status.model.source if status.model else "builtin://quire-tiny") == source
    template = world.manifests[Key("Deployment", "good")]["spec"]["template"]["spec"]
    assert ("c0ffee" in str(template.get("initContainers"))) == (source != "builtin://quire-tiny")


BIG = Footprint(parameters=1000, kv_values_per_token=10, dtype="bfloat16")


@pytest.mark.parametrize(
    ("engine", "footprint", "need"),
    [
        ({}, BIG, Need(weights=2000, cache=0, swap=0)),
        ({"dtype": "float32"}, BIG, Need(weights=4000, cache=0, swap=0)),
        ({"max_model_len": 100}, BIG, Need(weights=2000, cache=2000, swap=0)),
        ({"max_model_len": 100, "dtype": "float32"}, BIG, Need(weights=4000, cache=4000, swap=0)),
        ({"max_model_len": 100, "kv_cache_dtype": "fp8"}, BIG, Need(weights=2000, cache=1000, swap=0)),
        ({"max_model_len": 100, "kv_cache_gib": 1}, BIG, Need(weights=2000, cache=GIB, swap=0)),
        ({"swap_space_gib": 2}, BIG, Need(weights=2000, cache=0, swap=2 * GIB)),
        ({"kv_cache_gib": 1}, None, Need(weights=0, cache=GIB, swap=0)),
        ({"max_model_len": 100}, None, Need(weights=0, cache=0, swap=0)),
    ],
)
def test_what_an_engine_needs_is_arithmetic(engine: dict[str, Any], footprint: Footprint | None, need: Need) -> None:
    assert need_of(EngineOptions(**engine), footprint) == need


def test_quantized_weights_may_stay_as_they_are_on_a_gpu() -> None:
    said = {
        "revision": "r",
        "bytes": 600,
        "parameters": 1000,
        "dtype": "bfloat16",
        "kvBytesPerToken": 20,
        "quantization": "awq",
    }
    pin = ModelStatus.from_answer("hf://org/model", (), json.dumps(said))
    assert pin is not None
    quantized = pin.footprint

    assert quantized == replace(BIG, quantized_bytes=600)
    assert need_of(EngineOptions(), quantized, on_device=True).weights == 600
    assert need_of(EngineOptions(), quantized).weights == 2000
    for method, bytes_there in (("awq", 600), ("mxfp4", None)):  # of which no kernel takes any
        status = ModelStatus(
            source="x", revision="1", bytes=600, parameters=1000, dtype="bfloat16", quantization=method
        )
        assert status.footprint is not None
        assert status.footprint.quantized_bytes == bytes_there
    assert need_of(EngineOptions(), BIG, on_device=True).weights == 2000


def test_what_is_asked_for_in_gib_each_device_has() -> None:
    engine = EngineOptions(kv_cache_gib=1, swap_space_gib=2)

    assert need_of(engine, BIG, devices=4) == Need(weights=2000, cache=4 * GIB, swap=8 * GIB)


@given(st.builds(Need, weights=st.integers(0, 9), cache=st.integers(0, 9), swap=st.integers(0, 9)), st.integers(0, 30))
def test_nothing_is_refused_that_has_room(need: Need, room: int) -> None:
    host, device = (misfit(need, Room(bytes=room, of="it", on_device=on)) for on in (False, True))

    assert (host is None) == (need.weights + need.cache + need.swap <= room)
    assert (device is None) == (need.weights + need.cache <= room)


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        ("24Gi", 24 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("500M", 500_000_000),
        ("1024", 1024),
        (8, 8),
        (None, None),
        ("x", None),
        ("1Zi", None),
    ],
)
def test_amounts_of_memory_are_read_as_kubernetes_writes_them(quantity: object, amount: int | None) -> None:
    assert quantity_bytes(quantity) == amount


# the Job itself


def job_of(**changes: Any) -> dict[str, Any]:
    made = render(LLMDeployment.parse(resource(**changes))).resolve
    assert made is not None
    return dict(made)


def test_a_job_has_what_the_fetching_container_has_and_no_gpu() -> None:
    patch = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {
            "imagePullSecrets": [{"name": "registry"}],
            "initContainers": [
                {
                    "name": "weights",
                    "env": [{"name": "HTTPS_PROXY", "value": "http://proxy"}],
                    "volumeMounts": [{"name": "ca", "mountPath": "/etc/ca"}],
                },
                {"name": "other", "image": "x"},
            ],
            "containers": [{"name": "engine", "args": ["--seed=1"]}],
            "volumes": [{"name": "ca", "configMap": {"name": "ca"}}, {"name": "scratch", "emptyDir": {}}],
        },
    }
    source = {"uri": "hf://acme/model", "secretRef": {"name": "hf-token"}}
    pod = job_of(
        spec__model={"source": source}, spec__podTemplate=patch, spec__scheduling={"nodeSelector": {"a": "b"}}
    )["spec"]["template"]["spec"]

    (container,) = pod["containers"]
    assert container["command"] == ["quire", "fetch", "resolve", "hf://acme/model"]
    assert container["envFrom"] == [{"secretRef": {"name": "hf-token"}}]
    assert container["env"][-1]["name"] == "HTTPS_PROXY"
    assert [m["name"] for m in container["volumeMounts"]] == ["tmp", "ca"]
    assert [v["name"] for v in pod["volumes"]] == ["tmp", "ca"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"a": "b"}
    assert "nvidia" not in str(pod)


def test_no_service_sends_requests_to_a_job() -> None:
    labels = job_of()["spec"]["template"]["metadata"]["labels"]

    assert labels["quire.dev/llmdeployment"] == "good"
    assert labels["quire.dev/role"] == "resolve"


def test_the_name_of_a_job_fits_into_a_label() -> None:
    world = World()
    decided = world.turn(resource(metadata__name="a" * 45))

    assert len(next(a.key.name for a in decided.actions if a.key.kind == "Job")) <= 63
