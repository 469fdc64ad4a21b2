"""What the operator says of itself: its queue, its writes, how its resources stand."""

import asyncio
import copy
from typing import Any

from fakes.resources import good
from fakes.small_cluster import KEY, SmallCluster
from prometheus_client.parser import text_string_to_metric_families

from quire_api.metrics import OPERATOR
from quire_operator.backends.census import census
from quire_operator.backends.store import Store
from quire_operator.metrics import OperatorMetrics
from quire_operator.reconcile import ResourceKey
from quire_operator.worker import Worker


def samples(
    metrics: OperatorMetrics, store: Store, leads: bool = True, late: tuple[float, ...] = ()
) -> dict[str, float]:
    """`name{label=value}` -> value."""
    text = metrics.render(leads=leads, late=late, census=census(store)).decode()
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def serving() -> SmallCluster:
    cluster = SmallCluster()
    cluster.apply(good(spec__image="good:1", spec__replicas=2))
    cluster.run(60)
    assert cluster.said("Ready") == "True/Serving"
    return cluster


def test_every_metric_of_the_table_is_exported() -> None:
    metrics = OperatorMetrics()
    with metrics.reconcile():
        metrics.waited(0.1)
        metrics.wrote("apply", "services")
        metrics.corrected("Service")

    exported = metrics.render(leads=True, late=(), census=census(serving().store)).decode()

    for metric in OPERATOR:
        assert f"# TYPE {metric.name} {metric.kind}" in exported
        assert f"\n{metric.name}" in exported.replace("_bucket", "").replace("_count", "")


def test_resources_are_counted_by_what_they_say() -> None:
    cluster = serving()
    said = samples(OperatorMetrics(), cluster.store)
    cluster.store.put({**good(metadata__name="new"), "status": {}})
    with_another = samples(OperatorMetrics(), cluster.store)

    assert said["quire_operator_resources{condition=Ready,status=True}"] == 1
    assert said["quire_operator_resources{condition=Available,status=True}"] == 1
    assert said["quire_operator_resources{condition=Ready,status=False}"] == 0
    assert said["quire_operator_replicas{name=good,namespace=default,state=wanted}"] == 2
    assert said["quire_operator_replicas{name=good,namespace=default,state=ready}"] == 2
    assert with_another["quire_operator_resources{condition=Ready,status=Unknown}"] == 1


def test_what_is_gone_is_no_longer_counted() -> None:
    metrics, cluster = OperatorMetrics(), serving()
    samples(metrics, cluster.store)

    said = samples(metrics, Store(), leads=False)

    assert not [name for name in said if "replicas" in name]
    assert said["quire_operator_resources{condition=Ready,status=True}"] == 0
    assert said["quire_operator_leader{}"] == 0


def test_turns_that_are_late_are_counted_with_the_oldest() -> None:
    said = samples(OperatorMetrics(), Store(), late=(0.5, 7.0))

    assert said["quire_operator_queue_depth{}"] == 2
    assert said["quire_operator_queue_oldest_seconds{}"] == 7


def test_the_queue_says_what_waits_and_for_how_long() -> None:
    waited: list[float] = []

    async def main() -> list[int]:
        began, go_on = asyncio.Event(), asyncio.Event()

        async def turn(key: ResourceKey) -> float | None:
            began.set()
            await go_on.wait()
            return None

        worker = Worker(turn, waited=waited.append)
        for name in "abc":
            worker.wake(ResourceKey("default", name))
        worker.wake(ResourceKey("default", "later"), after=1000)
        late = [len(worker.late())]
        running = asyncio.create_task(worker.run())
        await began.wait()
        late.append(len(worker.late()))
        go_on.set()
        while len(waited) < 3:
            await asyncio.sleep(0)
        running.cancel()
        return [*late, len(worker.late())]

    depths = asyncio.run(main())

    assert depths[0] == 3
    assert depths[1] < 3
    assert depths[2] == 0
    assert all(0 <= seconds < 1000 for seconds in waited)


def edited(cluster: SmallCluster, kind: str, **spec: Any) -> None:
    """By somebody else."""
    obj = copy.deepcopy(cluster.objects[kind, KEY.name])
    obj["spec"] |= spec
    cluster.put(obj)


def test_what_somebody_else_changed_or_deleted_is_put_right_and_counted() -> None:
    cluster = serving()
    edited(cluster, "Service", selector={"quire.dev/role": "wrong"})
    cluster.run(10)
    cluster.remove("NetworkPolicy", KEY.name)
    cluster.run(10)

    assert cluster.objects["Service", KEY.name]["spec"]["selector"]["quire.dev/role"] == "engine"
    assert ("NetworkPolicy", KEY.name) in cluster.objects
    assert cluster.corrected == ["Service", "NetworkPolicy"]


def test_what_we_change_ourselves_is_no_drift_and_is_not_applied_twice() -> None:
    cluster = serving()
    for replicas in (3, 1, 2):  # with and without a PodDisruptionBudget
        cluster.apply(good(spec__image="good:1", spec__replicas=replicas))
        cluster.run(30)
    cluster.apply(good(spec__image="good:2", spec__replicas=2))
    cluster.run(60)
    writes = cluster.writes

    cluster.apply(good(spec__image="good:2", spec__replicas=3))
    cluster.run(60)

    assert cluster.corrected == []
    assert cluster.rolled == ["good:1", "good:2"]
    statuses = 3  # said, seen, serving
    assert cluster.writes - writes <= 1 + statuses  # the scale
