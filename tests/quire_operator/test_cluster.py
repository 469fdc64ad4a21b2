"""What is read out of Kubernetes objects, and what is done with them: the store, the snapshot, the queue."""

import asyncio
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.events import Events
from fakes.resources import good

from quire_api import DeploymentStatus
from quire_operator.backends.cluster import ClusterBackend, observe
from quire_operator.backends.fetches import Fetching
from quire_operator.backends.pods import Asked
from quire_operator.backends.refusals import PodlessJob, Refusals
from quire_operator.backends.store import Store
from quire_operator.listing import Lister
from quire_operator.planner.observed import (
    Failure,
    Key,
    NoPlace,
    Progress,
    ResolveJob,
    Revision,
    Scaler,
    Workload,
    digest,
)
from quire_operator.reconcile import ResourceKey
from quire_operator.settings import OperatorSettings
from quire_operator.worker import Worker

KEY = ResourceKey("default", "good")
OWNER = {"kind": "LLMDeployment", "name": "good", "uid": "u1", "controller": True}


def child(kind: str, version: int = 1, name: str = "good", owner: Any = OWNER, **parts: Any) -> dict[str, Any]:
    metadata = {
        "name": name, "namespace": "default", "uid": f"{kind}-{name}", "resourceVersion": str(version), "generation": 1,
        "labels": {"quire.dev/llmdeployment": "good", "quire.dev/role": "engine"}, "ownerReferences": [owner] if owner else [],
    }  # fmt: skip
    return {"kind": kind, "metadata": metadata, "spec": {}, **parts}


def snapshot(*objects: dict[str, Any], applied: Any = None) -> Any:
    store = Store()
    parent = good(metadata__uid="u1")
    for each in (parent, *objects):
        store.put(each)
    asked = Asked(
        refusal=lambda uid: "exceeded quota: pods" if uid == "refused" else "",
        progress=lambda uid: Progress(phase="downloading", percent=30, bytes_per_second=7) if uid == "slow" else None,
    )
    return observe(KEY, parent, store, applied or {}, asked)


def pod(name: str = "p", ready: bool = False, **container: Any) -> dict[str, Any]:
    status = {
        "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        "containerStatuses": [{"name": "engine", **container}],
    }
    return child("Pod", name=name, status=status)


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


def test_the_store_keeps_the_newer_state_whatever_the_order_of_events() -> None:
    store = Store()
    store.put(child("Service", version=9))
    store.put(child("Service", version=10))
    store.put(child("Service", version=2))

    assert [o["metadata"]["resourceVersion"] for o in store.children(KEY, "Service")] == ["10"]


def test_the_store_keeps_what_is_read_and_no_more() -> None:
    store = Store()
    store.put(pod("p", ready=True))
    service = child("Service", spec={"selector": {}})
    service["metadata"]["managedFields"] = [{"manager": "quire"}]
    store.put(service)

    (kept_pod,), (kept_service,) = store.children(KEY, "Pod"), store.children(KEY, "Service")

    assert set(kept_pod) == {"kind", "metadata", "status"}
    assert set(kept_service) == {"kind", "metadata"}
    assert "managedFields" not in kept_service["metadata"]


def test_a_late_deletion_does_not_drop_the_successor() -> None:
    store = Store()
    old, new = child("Service", version=1), child("Service", version=5)
    new["metadata"]["uid"] = "another"
    store.put(new)

    store.drop(old)

    assert len(list(store.children(KEY, "Service"))) == 1


def test_objects_of_nobody_concern_nobody() -> None:
    stranger = child("Pod")
    stranger["metadata"]["labels"] = {}

    assert Store().put(stranger) == set()


def test_what_was_deleted_does_not_come_back_by_a_late_answer() -> None:
    store = Store()
    store.put(child("Service", version=1))
    store.drop(child("Service", version=2))

    store.put(child("Service", version=3))

    assert list(store.children(KEY, "Service")) == []


def test_an_object_whose_label_changed_leaves_its_old_place() -> None:
    store = Store()
    store.put(child("Pod", version=1))
    moved = child("Pod", version=2)
    moved["metadata"]["labels"] = {}

    concerned = store.put(moved)

    assert concerned == {KEY}
    assert list(store.children(KEY, "Pod")) == []


def test_a_full_list_drops_what_it_has_not() -> None:
    store = Store()
    store.put(child("Pod", name="here"))
    store.put(child("Pod", name="gone"))
    store.put(child("Service", name="other"))

    concerned = store.drop_all(store.uids("Pod", None) - {"Pod-here"})

    assert concerned == {KEY}
    assert [p["metadata"]["name"] for p in store.children(KEY, "Pod")] == ["here"]
    assert len(list(store.children(KEY, "Service"))) == 1


class Listings:
    """A dynamic client that has lists alone; `arrives` is called with each page that is asked for."""

    def __init__(self, pages: dict[str, list[Any]], arrives: Callable[[], None] = lambda: None) -> None:
        self.resources = self
        self._pages = pages
        self._arrives = arrives

    async def get(self, kind: str = "", _continue: str | None = None, **asked: Any) -> Any:
        if kind:  # which resource
            self._kind = kind
            return self
        self._arrives()
        number = int(_continue or 0)
        pages = self._pages.get(self._kind) or [[]]
        if isinstance(pages[number], Exception):
            raise pages[number]
        items = [{name: part for name, part in item.items() if name != "kind"} for item in pages[number]]
        metadata = {"continue": str(number + 1)} if number + 1 < len(pages) else {}
        return {"items": items, "metadata": metadata}


PODS = ("", "v1", "pods", "Pod")
SERVICES = ("", "v1", "services", "Service")


def test_the_first_lists_have_all_there_is_by_pages() -> None:
    store = Store()
    pages = {"Pod": [[child("Pod", name="a")], [child("Pod", name="b")]], "Service": [[child("Service")]]}

    asyncio.run(Lister(Listings(pages), store, [PODS, SERVICES], []).first())

    assert [pod["metadata"]["name"] for pod in store.children(KEY, "Pod")] == ["a", "b"]
    assert store.child(KEY, "Service", "good") is not None


def test_what_arrives_while_a_list_is_read_is_not_dropped_and_what_has_gone_is() -> None:
    store, woken = Store(), set[Any]()
    store.put(child("Pod", name="gone"))
    store.put(child("Pod", name="here"))
    lists = Listings({"Pod": [[child("Pod", name="here")]]}, lambda: store.put(child("Pod", name="new")) and None)

    asyncio.run(Lister(lists, store, [PODS], []).look(woken.add))

    assert [pod["metadata"]["name"] for pod in store.children(KEY, "Pod")] == ["here", "new"]
    assert woken == {KEY}


def test_a_list_that_fails_drops_nothing_and_the_others_go_on() -> None:
    store = Store()
    store.put(child("Pod"))
    store.put(child("Service", name="gone"))
    lists = Listings({"Pod": [[], TimeoutError()], "Service": [[]]})

    asyncio.run(Lister(lists, store, [PODS, SERVICES], []).look(lambda key: None))

    assert store.child(KEY, "Pod", "good") is not None
    assert store.child(KEY, "Service", "gone") is None


def test_children_of_a_deleted_namesake_are_known_as_such() -> None:
    seen = snapshot(child("Service", owner={**OWNER, "uid": "of the deleted one"}))

    assert seen.objects[Key("Service", "good")].of_predecessor


def test_a_copy_of_our_labels_does_not_make_a_deployment_ours() -> None:
    status = {"observedGeneration": 1, "replicas": 9, "updatedReplicas": 9, "availableReplicas": 9}
    copy = child("Deployment", name="a-copy", owner=None, spec={"replicas": 9}, status=status)

    assert snapshot(copy).workload == Workload()


def test_pods_of_an_older_revision_are_not_current() -> None:
    label = "quire.dev/revision"
    template = {"metadata": {"labels": {label: "new"}}}
    old, new = pod("old"), pod("new")
    old["metadata"]["labels"][label], new["metadata"]["labels"][label] = "old", "new"

    seen = snapshot(child("Deployment", spec={"replicas": 1, "template": template}), old, new)

    assert [(i.name, i.current) for i in seen.instances] == [("new", True), ("old", False)]


def test_an_object_that_changed_since_it_was_applied_is_to_be_applied_again() -> None:
    live = child("Service")
    mark = json.dumps(
        ["Service-good", 1, live["metadata"]["labels"], live["metadata"]["ownerReferences"]], sort_keys=True
    )
    applied = {(KEY, Key("Service", "good")): ("digest", mark)}

    same = snapshot(live, applied=applied)
    relabelled = child("Service")
    relabelled["metadata"]["labels"]["extra"] = "x"
    edited = child("Service")
    edited["metadata"]["generation"] = 2

    assert same.objects[Key("Service", "good")].applied == "digest"
    assert snapshot(relabelled, applied=applied).objects[Key("Service", "good")].applied is None
    assert snapshot(edited, applied=applied).objects[Key("Service", "good")].applied is None
    assert snapshot(live).objects[Key("Service", "good")].applied is None


def test_who_controls_an_object_is_seen() -> None:
    other = {**OWNER, "uid": "u2"}
    seen = snapshot(child("Service", owner=other), child("ServiceAccount", owner=None))

    assert seen.objects[Key("Service", "good")].owner_uid == "u2"
    assert seen.objects[Key("ServiceAccount", "good")].owner_uid is None


def test_a_status_that_is_not_ours_counts_as_empty() -> None:
    store = Store()
    for written in ({"replicas": "many"}, {"phase": "Running"}):
        parent = {**good(metadata__uid="u1"), "status": written}

        assert observe(KEY, parent, store, {}, Asked()).status == DeploymentStatus()


def test_progress_is_read_from_the_deployment() -> None:
    status = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 2, "readyReplicas": 3, "availableReplicas": 2}
    seen = snapshot(child("Deployment", spec={"replicas": 2}, status=status))

    assert seen.workload == Workload(current=True, replicas=3, updated=2, ready=2, updated_ready=1, nodes=1)
    assert seen.objects[Key("Deployment", "good")].replicas == 2


def test_a_container_that_fetches_weights_may_fail_too() -> None:
    seen = pod()
    starting = {"state": {"waiting": {"reason": "PodInitializing"}}}
    seen["status"] = {
        "initContainerStatuses": [{"name": "weights", "state": ended(21, "log\nModelAccessDenied: no token")}],
        "containerStatuses": [starting],
    }

    failure = snapshot(seen).instances[0].failure

    assert failure == Failure(message="ModelAccessDenied: no token", exit_code=21, cause="Error", container="weights")


REFUSAL = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}


def template_of(revision: str) -> dict[str, Any]:
    return {"metadata": {"labels": {"quire.dev/revision": revision}}}


def replica_set(revision: str, condition: Any, deployment: str = "Deployment-good") -> dict[str, Any]:
    owner = {"kind": "Deployment", "name": "good", "uid": deployment, "controller": True}
    made = child("ReplicaSet", name=f"good-{revision}-{deployment}", owner=owner, status={"conditions": [condition]})
    made["metadata"]["labels"] |= template_of(revision)["metadata"]["labels"]  # as the Deployment controller does
    return made


@pytest.mark.parametrize(
    ("replica_sets", "refused"),
    [
        ([replica_set("new", REFUSAL)], "exceeded quota"),
        ([replica_set("new", {**REFUSAL, "status": "False"})], ""),
        ([replica_set("old", REFUSAL), replica_set("new", {"type": "Other", "status": "True"})], ""),
        ([replica_set("old", REFUSAL)], ""),
        ([replica_set("new", REFUSAL, deployment="of somebody else")], ""),
    ],
    ids=["refused", "mended", "of the old ones", "the new one is not there yet", "of somebody else"],
)
def test_why_no_pod_can_be_made_is_what_the_newest_replica_set_says(
    replica_sets: list[dict[str, Any]], refused: str
) -> None:
    """The Deployment hands on what its old ones say as well."""
    deployment = child("Deployment", spec={"template": template_of("new")}, status={"conditions": [REFUSAL]})

    assert snapshot(deployment, *replica_sets).workload.refused == refused


def test_a_deployment_whose_controller_lags_is_not_current() -> None:
    stale = child(
        "Deployment", spec={"replicas": 1}, status={"observedGeneration": 0, "replicas": 1, "updatedReplicas": 1}
    )

    assert not snapshot(stale).workload.current


@pytest.mark.parametrize(
    ("container", "failure"),
    [
        ({"state": {"running": {}}}, None),
        ({"state": {"waiting": {"reason": "ContainerCreating"}}}, None),
        ({"state": {"terminated": {"exitCode": 0}}}, None),
        (
            {"state": ended(10, "log\nquire serve: no model")},
            Failure(message="quire serve: no model", exit_code=10, cause="Error"),
        ),
        (
            {
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                "lastState": ended(12, "bad flag"),
            },
            Failure(message="bad flag", exit_code=12, cause="Error", again=True),
        ),
        (
            {"state": {"running": {}}, "lastState": ended(137, "", "OOMKilled")},
            Failure(message="", exit_code=137, cause="OOMKilled"),
        ),
        (
            {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "denied"}}},
            Failure(message="denied", cause="ImagePullBackOff"),
        ),
    ],
)
def test_how_a_container_failed_is_read_from_its_status(container: dict[str, Any], failure: Failure | None) -> None:
    assert snapshot(pod(**container)).instances[0].failure == failure


def test_a_pod_without_a_place_is_seen_with_the_schedulers_words() -> None:
    waiting = pod()
    waiting["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes.", "lastTransitionTime": "T"}
    )  # fmt: skip

    assert snapshot(waiting).instances[0].no_place == NoPlace(since="T", message="0/1 nodes")
    assert snapshot(pod()).instances[0].no_place is None


def test_pods_that_fetch_and_have_an_address_may_be_asked() -> None:
    store = Store()
    store.put(good(metadata__uid="u1"))
    for name, address, state in (
        ("p", "10.0.0.7", "running"),
        ("q", "fd00::7", "running"),
        ("r", "10.0.0.8", "waiting"),
    ):
        seen = pod(name)
        seen["status"] |= {"podIP": address, "initContainerStatuses": [{"name": "weights", "state": {state: {}}}]}
        store.put(seen)

    asked = ClusterBackend(SimpleNamespace(), store, OperatorSettings()).fetching()

    assert asked == [Fetching("Pod-p", KEY, "10.0.0.7:8000"), Fetching("Pod-q", KEY, "[fd00::7]:8000")]


def test_how_far_the_weights_are_is_what_their_container_said() -> None:
    slow, done = pod("slow"), pod("done")
    slow["metadata"]["uid"] = done["metadata"]["uid"] = "slow"
    slow["status"]["initContainerStatuses"] = [{"name": "weights", "state": {"running": {}}}]

    by_name = {instance.name: instance.progress for instance in snapshot(slow, done).instances}

    assert by_name == {"slow": Progress(phase="downloading", percent=30, bytes_per_second=7), "done": None}


@pytest.mark.parametrize(
    ("state", "fetching", "fetched_at"),
    [({"running": {}}, True, ""), ({"terminated": {"exitCode": 0, "finishedAt": "T"}}, False, "T"), ({}, False, "")],
)
def test_whether_weights_are_on_their_way_is_seen(state: Any, fetching: bool, fetched_at: str) -> None:
    seen = pod()
    seen["status"]["initContainerStatuses"] = [{"name": "weights", "state": state}]

    instance = snapshot(seen).instances[0]

    assert (instance.fetching, instance.fetched_at) == (fetching, fetched_at)


def test_templates_that_are_kept_are_read_and_those_of_others_are_not() -> None:
    template = {"metadata": {"labels": {"quire.dev/revision": "abc"}}, "spec": {}}
    ours = child("ControllerRevision", name="good-abc", revision=3, data={"template": template})
    ours["metadata"]["labels"]["quire.dev/spec"] = "def"
    others = child("ControllerRevision", name="other", owner={**OWNER, "uid": "u2"}, data={"template": template})
    empty = child("ControllerRevision", name="empty", data=None)

    seen = snapshot(ours, others, empty)

    assert seen.history == (Revision(id="abc", number=3, spec="def", template=template),)


@pytest.mark.parametrize(
    ("strategy", "unavailable"),
    [({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 2}}, 2), ({"rollingUpdate": {"maxUnavailable": "25%"}}, 0), ({}, 0)],
)  # fmt: skip
def test_how_a_deployment_rolls_is_read(strategy: Any, unavailable: int) -> None:
    seen = snapshot(child("Deployment", spec={"strategy": strategy, "paused": True}))

    assert (seen.workload.unavailable, seen.workload.paused) == (unavailable, True)


def test_a_ready_pod_has_no_failure_and_a_terminating_one_is_no_instance() -> None:
    going = pod("going", state={"running": {}})
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"

    seen = snapshot(pod("fine", ready=True, state={"running": {}}, lastState=ended(1)), going)

    assert [(i.name, i.ready, i.failure) for i in seen.instances] == [("fine", True, None)]


def test_the_queue_turns_once_for_many_wakes_and_retries_what_failed() -> None:
    seen: list[ResourceKey] = []
    other = ResourceKey("default", "other")

    async def turn(key: ResourceKey) -> float | None:
        seen.append(key)
        if key == other and seen.count(other) == 1:
            raise RuntimeError("the first time")
        return None

    async def main() -> None:
        worker = Worker(turn)
        for _ in range(5):
            worker.wake(KEY)
        worker.wake(other)
        running = asyncio.create_task(worker.run())
        for _ in range(300):
            if seen.count(other) == 2:
                break
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(main())

    assert seen == [KEY, other, other]


def test_a_wake_during_a_turn_is_not_lost() -> None:
    turns = 0

    async def main() -> None:
        async def turn(key: ResourceKey) -> float | None:
            nonlocal turns
            turns += 1
            if turns == 1:
                worker.wake(key)
            return None

        worker = Worker(turn)
        worker.wake(KEY)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.1)
        running.cancel()

    asyncio.run(main())

    assert turns == 2


def test_several_have_their_turns_at_once_and_one_never_has_two() -> None:
    now: list[ResourceKey] = []
    most: list[int] = []
    turns = dict.fromkeys("abcde", 0)

    async def main() -> None:
        async def turn(key: ResourceKey) -> float | None:
            assert key not in now
            now.append(key)
            most.append(len(now))
            worker.wake(key, 0 if turns[key.name] < 3 else 1000)
            await asyncio.sleep(0.002)
            turns[key.name] += 1
            now.remove(key)
            return None

        worker = Worker(turn, at_once=3)
        for name in turns:
            worker.wake(ResourceKey("default", name))
        running = asyncio.create_task(worker.run())
        while min(turns.values()) < 4:
            await asyncio.sleep(0.001)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())

    assert max(most) == 3


def test_a_queue_that_ends_ends_its_turns() -> None:
    ended: list[str] = []

    async def main() -> None:
        began = asyncio.Event()

        async def turn(key: ResourceKey) -> float | None:
            began.set()
            try:
                await asyncio.sleep(1000)
            finally:
                ended.append(key.name)
            return None

        worker = Worker(turn)
        worker.wake(KEY)
        running = asyncio.create_task(worker.run())
        await began.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())

    assert ended == [KEY.name]


def test_what_is_gone_is_not_looked_at_again() -> None:
    async def main() -> Worker:
        async def turn(key: ResourceKey) -> float | None:
            return float("inf")

        worker = Worker(turn)
        worker.wake(KEY)
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.05)
        running.cancel()
        return worker

    assert asyncio.run(main()).due == {}


# Jobs that ask a source


def job(*conditions: dict[str, str]) -> dict[str, Any]:
    made = child("Job", name="good-resolve-1", status={"conditions": list(conditions)})
    made["metadata"]["labels"].update(
        {"quire.dev/role": "resolve", "quire.dev/revision": "t", "quire.dev/attempt": "2"}
    )
    return made


def pod_of_the_job(**state: Any) -> dict[str, Any]:
    made = child("Pod", name="good-resolve-1-x", owner={"kind": "Job", "name": "good-resolve-1", "uid": "j"})
    made["metadata"]["labels"]["quire.dev/role"] = "resolve"
    made["status"] = {"containerStatuses": [{"name": "weights", **state}]}
    return made


FAILED = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": "T"}


@pytest.mark.parametrize(
    ("objects", "seen"),
    [
        ((job(),), ResolveJob(template="t", attempt=2)),
        ((job(), pod_of_the_job(state={"running": {}})), ResolveJob(template="t", attempt=2)),
        (
            (job(), pod_of_the_job(state={"terminated": {"exitCode": 0, "message": "{}", "finishedAt": "T"}})),
            ResolveJob(template="t", attempt=2, answer="{}", ended="T"),
        ),
        (
            (
                job(),
                pod_of_the_job(state={"waiting": {"reason": "CreateContainerConfigError", "message": "no secret"}}),
            ),
            ResolveJob(
                template="t",
                attempt=2,
                failure=Failure(message="no secret", cause="CreateContainerConfigError", container="weights"),
            ),
        ),
        (
            (job(FAILED), pod_of_the_job(state=ended(21, "ModelAccessDenied: gated"))),
            ResolveJob(
                template="t",
                attempt=2,
                failure=Failure(message="ModelAccessDenied: gated", exit_code=21, cause="Error", container="weights"),
                ended="T",
            ),
        ),
        (
            (job({**FAILED, "reason": "DeadlineExceeded", "message": "too long"}),),
            ResolveJob(
                template="t",
                attempt=2,
                failure=Failure(message="too long", cause="DeadlineExceeded", container="weights"),
                ended="T",
            ),
        ),
    ],
)
def test_what_a_job_has_found_out_is_read_from_it_and_its_pod(
    objects: tuple[dict[str, Any], ...], seen: ResolveJob
) -> None:
    snap = snapshot(*objects)

    assert snap.jobs == (seen,)
    assert snap.instances == ()


@pytest.mark.parametrize("over", [(), (FAILED,)])
def test_why_a_job_has_no_pod_is_told_of_it_and_no_longer_when_it_has_one(over: tuple[Any, ...]) -> None:
    refused = job(*over)
    refused["metadata"]["uid"] = "refused"

    without = snapshot(refused).jobs[0].failure
    with_one = snapshot(refused, pod_of_the_job(state={"running": {}})).jobs[0].failure

    assert without == Failure(message="exceeded quota: pods", cause="FailedCreate", container="weights")
    assert with_one is None or with_one.cause != "FailedCreate"


def backend_of(*objects: dict[str, Any]) -> ClusterBackend:
    store = Store()
    for each in objects:
        store.put(each)
    return ClusterBackend(None, store, OperatorSettings(engine_image="e"))


def test_jobs_without_a_pod_are_found() -> None:
    parent, alone = good(metadata__uid="u1"), job()
    other = pod_of_the_job(state={"running": {}})

    assert backend_of(parent, alone).podless_jobs() == [PodlessJob(alone["metadata"]["uid"], KEY)]
    assert backend_of(parent, alone, other).podless_jobs() == []


def test_a_job_that_stays_without_a_pod_is_asked_about_and_its_resource_woken_for_news_alone() -> None:
    events, jobs, woken = Events(), [PodlessJob("j", KEY)], []
    refusals = Refusals(events, lambda: jobs, woken.append)
    events.tell("j", 'Error creating: pods "good-resolve-1-aaaaa" is forbidden: exceeded quota: pods')

    async def looks() -> list[str]:
        said = []
        await refusals.look()
        said.append(refusals.of("j"))
        await refusals.look()
        said.append(refusals.of("j"))
        events.tell("j", 'Error creating: pods "good-resolve-1-bbbbb" is forbidden: exceeded quota: pods', "2026-01-02")
        await refusals.look()
        events.down = True
        await refusals.look()
        said.append(refusals.of("j"))
        jobs.clear()
        await refusals.look()
        return [*said, refusals.of("j")]

    said = asyncio.run(looks())

    words = "its pod is forbidden: exceeded quota: pods"
    assert said == ["", words, words, ""]
    assert woken == [KEY]


def test_a_resource_without_a_deployment_yet_is_no_scrape_target() -> None:
    spec = {"spec__autoscaling": {"mode": "Builtin", "max": 3}}
    parent = {**good(metadata__uid="u1", **spec), "status": {"observedGeneration": 1}}
    deployment = child("Deployment", spec={"replicas": 2}, status={})

    before, after = backend_of(parent).scrape_targets(), backend_of(parent, deployment).scrape_targets()

    assert before == []
    assert [(target.key, target.replicas, target.ready) for target in after] == [(KEY, 2, {})]


def hpa(**parts: Any) -> dict[str, Any]:
    """As the API server keeps it: without a generation."""
    made = child("HorizontalPodAutoscaler", **{"spec": {"maxReplicas": 3}, **parts})
    del made["metadata"]["generation"]
    return made


def hpa_condition(kind: str, status: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": "FailedGetPodsMetric", "message": f"{kind}: no metrics."}


@pytest.mark.parametrize(
    ("conditions", "fault"),
    [
        ([], ""),
        ([hpa_condition("ScalingActive", "True"), hpa_condition("ScalingLimited", "False")], ""),
        ([hpa_condition("AbleToScale", "True"), hpa_condition("ScalingActive", "False")], "ScalingActive: no metrics"),
        ([hpa_condition("ScalingActive", "False"), hpa_condition("AbleToScale", "False")], "AbleToScale: no metrics"),
    ],
)
def test_what_an_hpa_lacks_is_read_from_its_conditions(conditions: list[Any], fault: str) -> None:
    assert snapshot(hpa(status={"conditions": conditions})).scaler == Scaler(fault=fault)


def test_without_an_hpa_of_ours_nothing_is_said_of_one() -> None:
    others = hpa(owner={**OWNER, "uid": "u2"}, status={"conditions": [hpa_condition("ScalingActive", "False")]})

    assert snapshot(others).scaler is None


def test_what_an_hpa_says_of_itself_is_no_reason_to_apply_it_again_and_an_edit_is() -> None:
    key = (KEY, Key("HorizontalPodAutoscaler", "good"))
    metadata = hpa()["metadata"]
    mark = json.dumps(
        [metadata["uid"], digest({"maxReplicas": 3}), metadata["labels"], metadata["ownerReferences"]], sort_keys=True
    )
    applied = {key: ("digest", mark)}

    news = snapshot(hpa(version=7, status={"currentReplicas": 2}), applied=applied)
    edited = snapshot(hpa(version=8, spec={"maxReplicas": 9}), applied=applied)

    assert news.objects[key[1]].applied == "digest"
    assert edited.objects[key[1]].applied is None
