"""Roll-outs, on a cluster in miniature: the real operator, a Deployment controller, GPUs, and time that the test moves."""

from typing import Any

import pytest
from fakes.resources import good
from fakes.small_cluster import SmallCluster
from hypothesis import given, settings
from hypothesis import strategies as st

DEADLINE_S = 60


def resource(image: str = "good:1", replicas: int = 2, **changes: Any) -> dict[str, Any]:
    rollout = {"progressDeadline": f"{DEADLINE_S}s", **changes.pop("rollout", {})}
    return good(
        spec__image=image,
        spec__replicas=replicas,
        spec__rollout=rollout,
        spec__health={"startupTimeout": "30s"},
        spec__accelerator={"profile": "nvidia"},
        **changes,
    )


def serving(gpus: int = 8, **changes: Any) -> SmallCluster:
    """A cluster on which the resource serves."""
    cluster = SmallCluster(gpus=gpus)
    cluster.apply(resource(**changes))
    cluster.run(20)
    assert cluster.said("Ready") == "True/Serving", cluster.status
    cluster.available.clear()
    return cluster


def at_rest(cluster: SmallCluster) -> None:
    """Nothing is written any more, not by an operator that was started anew either, but for what it applies once."""
    cluster.run(300)
    version = cluster.version
    cluster.start_operator(cluster.engine_image)
    cluster.run(2 * DEADLINE_S)
    assert cluster.version == version


@pytest.mark.parametrize("bad", ["bad:2", "never:2", "denied:2", "half:2"])
def test_a_bad_revision_is_rolled_back_once_and_engines_serve_throughout(bad: str) -> None:
    cluster = serving()
    cluster.apply(resource(bad))
    cluster.run(DEADLINE_S - 5)
    before = list(cluster.rolled)

    cluster.run(10 * DEADLINE_S)

    assert before == ["good:1", bad]
    assert cluster.rolled == ["good:1", bad, "good:1"]
    assert all(cluster.available)
    assert cluster.serving() == ["good:1"] * 2
    assert cluster.said("Ready") == "False/RolledBack"
    assert cluster.said("Stalled") == "True/RolledBack"
    assert cluster.said("Progressing") == "False/RolledBack"
    assert cluster.said("Available") == "True/EnginesServe"
    at_rest(cluster)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [("bad:2", "CrashLoop: "), ("denied:2", "ImagePullDenied: "), ("never:2", "ProgressDeadlineExceeded: ")],
)
def test_what_went_wrong_is_told_after_its_pods_are_gone(bad: str, reason: str) -> None:
    cluster = serving()
    cluster.apply(resource(bad))

    cluster.run(2 * DEADLINE_S)

    assert reason in cluster.message("Stalled")
    assert "edit the spec" in cluster.message("Stalled")
    assert cluster.status["revision"]["failed"]["reason"] + ": " == reason


def open_to_all(cluster: SmallCluster) -> list[int]:
    """Ports that the NetworkPolicy lets in."""
    (rule,) = cluster.objects["NetworkPolicy", "good"]["spec"]["ingress"]
    return [port["port"] for port in rule["ports"]]


def with_port(port: int) -> dict[str, Any]:
    return {"spec__podTemplate": {"spec": {"containers": [{"name": "engine", "ports": [{"containerPort": port}]}]}}}


def test_the_open_ports_are_those_of_every_engine_that_there_is_and_after_a_roll_back_of_the_old_ones() -> None:
    cluster = serving(**with_port(9100))
    before = open_to_all(cluster)
    cluster.apply(resource("bad:2", **with_port(9200)))
    cluster.run(DEADLINE_S - 5)
    during = open_to_all(cluster)

    cluster.run(3 * DEADLINE_S)

    assert before == [8000, 9100]
    assert during == [8000, 9100, 9200]
    assert cluster.said("Stalled") == "True/RolledBack"
    assert open_to_all(cluster) == [8000, 9100]
    at_rest(cluster)


def test_the_open_ports_of_a_roll_out_that_went_well_are_the_new_ones() -> None:
    cluster = serving(**with_port(9100))
    cluster.apply(resource("good:2", **with_port(9200)))

    cluster.run(DEADLINE_S)

    assert open_to_all(cluster) == [8000, 9200]


def test_the_model_keeps_the_name_that_the_engines_that_run_have_after_a_roll_back() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2", spec__model__name="renamed"))
    cluster.run(DEADLINE_S - 5)
    during = cluster.status["modelName"]

    cluster.run(3 * DEADLINE_S)

    assert (during, cluster.status["modelName"]) == ("renamed", "quire-tiny")


def test_after_a_roll_back_an_edit_goes_forward() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2"))
    cluster.run(2 * DEADLINE_S)

    cluster.apply(resource("good:3"))
    cluster.run(DEADLINE_S)

    assert cluster.said("Ready") == "True/Serving"
    assert cluster.serving() == ["good:3"] * 2
    assert all(cluster.available)
    assert "failed" not in cluster.status["revision"]


def test_taking_the_edit_back_mends_it_without_another_roll_out() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2"))
    cluster.run(2 * DEADLINE_S)

    cluster.apply(resource("good:1"))
    cluster.run(5)

    assert cluster.said("Ready") == "True/Serving"
    assert cluster.rolled == ["good:1", "bad:2", "good:1"]


def test_an_autoscaler_that_writes_replicas_does_not_try_a_failed_revision_again() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2"))
    cluster.run(2 * DEADLINE_S)

    cluster.apply(resource("bad:2", replicas=4))
    cluster.run(2 * DEADLINE_S)

    assert cluster.rolled == ["good:1", "bad:2", "good:1"]
    assert cluster.serving() == ["good:1"] * 4
    assert cluster.said("Stalled") == "True/RolledBack"


@pytest.mark.parametrize("mode", ["HPA", "External"])
def test_engines_that_an_autoscaler_asks_for_are_no_news_of_the_spec(mode: str) -> None:
    scaled = {"spec__autoscaling": {"mode": mode, "max": 6}}
    cluster = serving(**scaled)

    cluster.apply(resource(replicas=4, **scaled))
    cluster.run(2)

    assert cluster.status["serving"] == "2/4"
    assert cluster.said("Ready") == "True/Serving"
    assert cluster.said("Degraded") == "True/ReplicasMissing"


def test_an_edit_of_anything_else_tries_a_failed_revision_again() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2"))
    cluster.run(2 * DEADLINE_S)

    cluster.apply(resource("bad:2", rollout={"progressDeadline": "90s"}))
    cluster.run(80)

    assert cluster.rolled == ["good:1", "bad:2", "good:1", "bad:2"]
    assert cluster.said("Progressing") == "True/RollingOut"


def test_without_roll_back_the_old_engines_serve_on() -> None:
    cluster = serving()
    cluster.apply(resource("bad:2", rollout={"autoRollback": False}))

    cluster.run(3 * DEADLINE_S)

    assert cluster.rolled == ["good:1", "bad:2"]
    assert cluster.said("Stalled") == "True/ProgressDeadlineExceeded"
    assert "autoRollback is false" in cluster.message("Stalled")
    assert cluster.serving() == ["good:1"] * 2
    at_rest(cluster)


def test_a_first_revision_has_nothing_to_return_to() -> None:
    cluster = SmallCluster()
    cluster.apply(resource("never:1"))

    cluster.run(3 * DEADLINE_S)

    assert cluster.said("Stalled") == "True/ProgressDeadlineExceeded"
    assert "none to roll back to" in cluster.message("Stalled")
    assert cluster.rolled == ["never:1"]


def test_a_cause_that_a_user_must_mend_is_told_after_the_deadline_too() -> None:
    cluster = SmallCluster()
    cluster.apply(resource("denied:1"))

    cluster.run(3 * DEADLINE_S)

    assert cluster.said("Stalled") == "True/ImagePullDenied"
    assert cluster.said("Progressing") == "False/ProgressDeadlineExceeded"


def test_a_template_that_somebody_deleted_cannot_be_returned_to_and_the_engines_of_it_serve_on() -> None:
    cluster = serving()
    cluster.apply(resource("never:2"))
    cluster.run(2 * DEADLINE_S)

    cluster.remove("ControllerRevision", f"good-{cluster.status['revision']['lastGood']}")
    cluster.run(3 * DEADLINE_S)

    assert cluster.said("Stalled") == "True/ProgressDeadlineExceeded"
    assert "none to roll back to" in cluster.message("Stalled")
    assert cluster.serving() == ["good:1"] * 2


def test_each_engine_more_that_serves_gives_the_next_one_its_own_time() -> None:
    """Six engines, 20 s each, one after the other: twice the deadline in all."""
    cluster = serving(replicas=6)
    cluster.loads_s = 20
    cluster.apply(resource("good:2", replicas=6))

    cluster.run(3 * DEADLINE_S)

    assert cluster.rolled == ["good:1", "good:2"]
    assert cluster.said("Ready") == "True/Serving"


def test_the_deadline_stands_still_while_weights_are_fetched() -> None:
    cluster = serving()
    cluster.fetches_s = 3 * DEADLINE_S
    cluster.apply(resource("good:2"))

    cluster.run(3 * DEADLINE_S - 5)
    meanwhile = list(cluster.rolled)
    cluster.run(4 * DEADLINE_S)

    assert meanwhile == cluster.rolled == ["good:1", "good:2"]
    assert cluster.said("Ready") == "True/Serving"


@pytest.mark.parametrize(("gpus", "replicas"), [(1, 1), (2, 2), (3, 3)])
def test_without_a_gpu_to_spare_an_old_engine_goes_first_after_thirty_seconds(gpus: int, replicas: int) -> None:
    cluster = serving(gpus=gpus, replicas=replicas)
    cluster.apply(resource("good:2", replicas=replicas))
    cluster.run(28)
    before = (cluster.serving(), cluster.said("Reconciling"), cluster.said("Progressing"))
    cluster.run(8)
    during = cluster.said("Progressing")

    cluster.run(30 * replicas)

    assert before == (["good:1"] * replicas, "True/Unschedulable", "True/RollingOut")
    assert during == "True/TerminatingFirst"
    assert cluster.serving() == ["good:2"] * replicas
    assert cluster.said("Ready") == "True/Serving"
    assert replicas == 1 or all(cluster.available)
    at_rest(cluster)


def test_on_one_gpu_a_bad_revision_gives_way_again() -> None:
    cluster = serving(gpus=1, replicas=1)
    cluster.apply(resource("bad:2", replicas=1))

    cluster.run(4 * DEADLINE_S)

    assert cluster.serving() == ["good:1"]
    assert cluster.said("Stalled") == "True/RolledBack"
    assert cluster.rolled == ["good:1", "bad:2", "good:1"]


@pytest.mark.parametrize(
    ("strategy", "engines"), [("SurgeFirst", {1, 2, 3}), ("TerminateFirst", {1, 2})], ids=lambda value: str(value)
)
def test_a_strategy_that_is_asked_for_is_kept_to(strategy: str, engines: set[int]) -> None:
    cluster = serving(rollout={"strategy": strategy})
    cluster.apply(resource("good:2", rollout={"strategy": strategy}))
    seen = set()

    for _ in range(40):
        cluster.run(1)
        seen.add(cluster.status["replicas"])

    assert seen <= engines
    assert max(seen) == max(engines)
    assert cluster.serving() == ["good:2"] * 2


def test_the_next_roll_out_tries_for_room_again() -> None:
    cluster = serving(gpus=1, replicas=1)
    cluster.apply(resource("good:2", replicas=1))
    cluster.run(60)
    cluster.gpus = 2
    cluster.available.clear()

    cluster.apply(resource("good:3", replicas=1))
    cluster.run(25)

    assert cluster.serving() == ["good:3"]
    assert all(cluster.available)


def test_more_replicas_than_gpus_are_no_fault_of_a_revision() -> None:
    cluster = serving(gpus=2)
    cluster.apply(resource("good:2", replicas=3))

    cluster.run(4 * DEADLINE_S)

    assert cluster.rolled == ["good:1", "good:2"]
    assert cluster.serving() == ["good:2"] * 2
    assert cluster.said("Reconciling") == "True/Unschedulable"


def test_where_a_quota_has_no_room_an_old_engine_goes_first() -> None:
    """The API server refuses the pod, so that there is none which has no place."""
    cluster = serving()
    cluster.quota = 2

    cluster.apply(resource("good:2"))
    cluster.run(DEADLINE_S)

    assert cluster.rolled == ["good:1", "good:2"]
    assert cluster.serving() == ["good:2"] * 2
    assert all(cluster.available)
    assert cluster.said("Ready") == "True/Serving"


def test_paused_nothing_moves_and_unpaused_it_goes_on() -> None:
    cluster = serving()
    cluster.loads_s = 20
    cluster.apply(resource("good:2"))
    cluster.run(10)
    cluster.apply(resource("good:3", replicas=5, spec__paused=True))
    cluster.run(2 * DEADLINE_S)
    meanwhile = (list(cluster.rolled), cluster.said("Stalled"), cluster.serving())

    cluster.apply(resource("good:3", replicas=5))
    cluster.run(4 * DEADLINE_S)

    assert meanwhile == (["good:1", "good:2"], "True/Paused", ["good:1", "good:1", "good:2"])
    assert cluster.serving() == ["good:3"] * 5
    assert all(cluster.available)


def test_pausing_alone_makes_a_roll_out_that_has_begun_stand_still() -> None:
    cluster = serving(replicas=3)
    cluster.apply(resource("never:2", replicas=3))
    cluster.run(3)

    cluster.apply(resource("never:2", replicas=3, spec__paused=True))
    cluster.run(10 * DEADLINE_S)

    assert cluster.objects["Deployment", "good"]["spec"]["paused"] is True
    assert cluster.said("Stalled") == "True/Paused"
    assert cluster.rolled == ["good:1", "never:2"]
    assert all(cluster.available)


def test_paused_at_rest_is_ready_and_the_deadline_begins_anew_afterwards() -> None:
    cluster = serving()
    cluster.apply(resource(spec__paused=True))
    cluster.run(20)
    at_rest_and_paused = cluster.said("Ready")
    cluster.apply(resource("never:2"))
    cluster.run(DEADLINE_S - 10)
    cluster.apply(resource("never:2", spec__paused=True))
    cluster.run(3 * DEADLINE_S)
    assert "failed" not in cluster.status["revision"]
    cluster.apply(resource("never:2"))

    cluster.run(DEADLINE_S - 10)

    assert at_rest_and_paused == "True/Serving"
    assert cluster.said("Progressing") == "True/RollingOut"


def test_suspended_nothing_runs_and_afterwards_it_is_as_before() -> None:
    cluster = serving(replicas=3)
    cluster.apply(resource(replicas=3, spec__suspend=True))
    cluster.run(20)
    meanwhile = (cluster.status["replicas"], cluster.said("Ready"), cluster.said("Available"))

    cluster.apply(resource(replicas=3))
    cluster.run(20)

    assert meanwhile == (0, "True/Suspended", "False/Suspended")
    assert cluster.serving() == ["good:1"] * 3
    assert cluster.rolled == ["good:1"]


def test_an_upgrade_of_the_operator_restarts_no_engine_until_it_is_asked_for() -> None:
    cluster = SmallCluster()
    cluster.apply(resource(""))
    cluster.run(20)
    cluster.start_operator("good:newer")
    cluster.run(2 * DEADLINE_S)
    left_alone = (list(cluster.rolled), cluster.said("UpgradeWaiting"), cluster.said("Ready"))

    cluster.apply(resource("", metadata__annotations={"quire.dev/upgrade": "true"}))
    cluster.run(DEADLINE_S)

    assert left_alone == (["good:default"], "True/NewerTemplate", "True/Serving")
    assert cluster.serving() == ["good:newer"] * 2
    assert cluster.said("UpgradeWaiting") == ""
    assert all(cluster.available[20:])


def test_an_upgrade_stays_when_the_wish_is_taken_back() -> None:
    cluster = SmallCluster()
    cluster.apply(resource(""))
    cluster.run(20)
    cluster.start_operator("good:newer")
    cluster.apply(resource("", metadata__annotations={"quire.dev/upgrade": "true"}))
    cluster.run(DEADLINE_S)

    cluster.apply(resource(""))
    cluster.run(DEADLINE_S)

    assert cluster.rolled == ["good:default", "good:newer"]


def test_an_edit_that_pods_are_not_made_of_takes_no_newer_template() -> None:
    cluster = SmallCluster()
    cluster.apply(resource(""))
    cluster.run(20)
    cluster.start_operator("good:newer")

    cluster.apply(resource("", replicas=3, rollout={"strategy": "SurgeFirst"}))
    cluster.run(DEADLINE_S)

    assert cluster.serving() == ["good:default"] * 3


def test_a_bad_newer_template_gives_way_to_the_stored_one() -> None:
    cluster = SmallCluster()
    cluster.apply(resource(""))
    cluster.run(20)
    cluster.start_operator("bad:newer")
    cluster.apply(resource("", metadata__annotations={"quire.dev/upgrade": "true"}))

    cluster.run(4 * DEADLINE_S)

    assert cluster.rolled == ["good:default", "bad:newer", "good:default"]
    assert cluster.said("Stalled") == "True/RolledBack"


def test_templates_that_nothing_returns_to_are_forgotten() -> None:
    cluster = serving()
    for version in range(2, 6):
        cluster.apply(resource(f"good:{version}"))
        cluster.run(40)

    kept = [obj for (kind, _), obj in cluster.objects.items() if kind == "ControllerRevision"]

    assert [r["data"]["template"]["spec"]["containers"][0]["image"] for r in kept] == ["good:5"]


def end(cluster: SmallCluster) -> tuple[Any, ...]:
    """What must be the same however often the operator was killed."""
    revision = {k: v for k, v in cluster.status["revision"].items() if k != "since"}
    conditions = {c["type"]: (c["status"], c["reason"]) for c in cluster.status["conditions"]}
    return cluster.serving(), cluster.rolled, revision, conditions


def history(cluster: SmallCluster) -> SmallCluster:
    """A start, a bad edit that is rolled back, a good one on a cluster that is full."""
    for image in ("good:1", "bad:2", "good:3"):
        cluster.apply(resource(image))
        cluster.run(5 * DEADLINE_S)
    return cluster


def test_killed_before_any_write_the_operator_ends_in_the_same_state() -> None:
    whole = history(SmallCluster(gpus=2))

    for write in range(1, whole.writes + 1):
        assert end(history(SmallCluster(gpus=2, kill_at=write))) == end(whole), f"killed at write {write}"


@pytest.mark.parametrize(("gpus", "replicas"), [(1, 2), (2, 3), (2, 5)])
def test_with_fewer_gpus_than_replicas_a_roll_out_reaches_every_engine(gpus: int, replicas: int) -> None:
    cluster = serving(gpus=gpus, replicas=gpus)
    cluster.apply(resource(replicas=replicas))
    cluster.run(20)
    cluster.available.clear()

    cluster.apply(resource("good:2", replicas=replicas))
    cluster.run(2 * DEADLINE_S)

    assert cluster.serving() == ["good:2"] * gpus
    assert gpus == 1 or all(cluster.available)
    assert cluster.said("Progressing") == ""


def test_what_the_api_server_refuses_has_no_deadline() -> None:
    cluster = serving()
    cluster.refuses = "Deployment"
    cluster.apply(resource("good:2"))
    cluster.run(3 * DEADLINE_S)
    meanwhile = cluster.said("Ready")

    cluster.refuses = ""
    cluster.run(3 * DEADLINE_S)

    assert meanwhile == "False/WriteRefused"
    assert cluster.rolled == ["good:1", "good:2"]
    assert cluster.said("Ready") == "True/Serving"


edits = st.tuples(
    st.sampled_from(["good:1", "good:2", "good:3", "bad:1", "never:1"]),
    st.integers(1, 3),
    st.integers(1, 3 * DEADLINE_S),  # seconds until the next one
    st.sampled_from(["Auto", "Auto", "TerminateFirst"]),
    st.sampled_from([{}, {}, {}, {"spec__paused": True}, {"spec__suspend": True}]),  # but for the last one
)


@settings(deadline=None, max_examples=60)
@given(gpus=st.integers(1, 4), several=st.lists(edits, min_size=1, max_size=4), restart=st.booleans())
def test_whatever_is_edited_when_it_comes_to_rest_and_never_in_a_dead_end(
    gpus: int, several: list[tuple[str, int, int, str, dict[str, Any]]], restart: bool
) -> None:
    """The last edit serves if it can; else what served before it does."""
    cluster = SmallCluster(gpus=gpus)
    cluster.apply(resource("good:0", replicas=min(gpus, 3)))
    cluster.run(30)
    for image, replicas, pause, strategy, hold in several:
        cluster.apply(resource(image, min(replicas, gpus), rollout={"strategy": strategy}, **hold))
        cluster.run(pause)
        if restart:
            cluster.start_operator()
    image, replicas, _, strategy, _ = several[-1]
    replicas = min(replicas, gpus)
    cluster.apply(resource(image, replicas, rollout={"strategy": strategy}))

    cluster.run(10 * DEADLINE_S)

    assert len(cluster.serving()) == replicas
    assert len(set(cluster.serving())) == 1
    if image.startswith("good"):
        assert cluster.serving() == [image] * replicas
        assert cluster.said("Ready") == "True/Serving"
    else:
        assert cluster.said("Stalled") == "True/RolledBack"
    at_rest(cluster)
