"""The registry as a cluster tells it: what is drawn of resources and slices, and watches that are cut, expire and end."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fakes.apiserver import ApiServer, slice_of
from fakes.backend import Backend, plain
from fakes.resources import good
from fakes.routing import Client, until
from hypothesis import given
from hypothesis import strategies as st

from quire_api import LLMDeployment
from quire_router import Endpoint, Model, Registry, Router, Strategy
from quire_router.cluster.picture import draw
from quire_router.cluster.world import ClusterWorld
from quire_router.declared import declared

# what is drawn


@pytest.mark.parametrize(("suspend", "desired"), [(False, 3), (True, 0)])
def test_a_suspended_resource_has_no_engines_on_their_way(suspend: bool, desired: int) -> None:
    deployment = LLMDeployment.parse(good(spec__replicas=3, spec__suspend=suspend))

    assert declared(deployment, None).desired == desired


def model(name: str = "m", *aliases: str, resource: str = "default/good", desired: int = 0) -> Model:
    return Model(name=name, aliases=aliases, resource=resource, desired=desired)


def engines(*slices: dict[str, Any], of: Model | None = None) -> dict[str, bool]:
    """Address -> does it drain."""
    (drawn,) = draw([of or model()], slices).registry.models
    return {endpoint.address: endpoint.draining for endpoint in drawn.endpoints}


@pytest.mark.parametrize(
    ("conditions", "seen"),
    [
        ({"ready": True}, {"10.0.0.1:8000": False}),
        ({}, {"10.0.0.1:8000": False}),
        ({"ready": False}, {}),
        ({"ready": False, "serving": False, "terminating": False}, {}),
        ({"ready": False, "serving": True, "terminating": True}, {"10.0.0.1:8000": True}),
        ({"ready": False, "serving": False, "terminating": True}, {}),
    ],
)
def test_an_engine_is_ready_or_drains_or_is_out(conditions: dict[str, bool], seen: dict[str, bool]) -> None:
    slice_ = slice_of("good", "10.0.0.1")
    slice_["endpoints"][0]["conditions"] = conditions

    assert engines(slice_) == seen


def test_a_model_without_engines_is_in_the_registry_all_the_same() -> None:
    drawn = draw([model(desired=2)], []).registry.find("m")

    assert drawn is not None
    assert (drawn.endpoints, drawn.loading) == ((), 2)


def test_slices_of_other_services_and_namespaces_are_no_business_of_a_model() -> None:
    others = [slice_of("other", "10.0.0.1"), slice_of("good", "10.0.0.2", namespace="elsewhere")]

    assert engines(*others, slice_of("good", "10.0.0.3")) == {"10.0.0.3:8000": False}


def test_an_engine_in_two_slices_is_one_and_an_ipv6_address_has_brackets() -> None:
    leaving = slice_of("good", "fd00::1", ready=False, serving=True, terminating=True)

    assert engines(leaving, slice_of("good", "fd00::1")) == {"[fd00::1]:8000": False}


def test_a_slice_without_the_engines_port_has_no_engine() -> None:
    slice_ = slice_of("good", "10.0.0.1")
    slice_["ports"][0]["name"] = "admin"

    assert engines(slice_) == {}


def test_of_two_resources_with_one_name_the_older_has_it_and_the_other_is_told_of() -> None:
    picture = draw([model("m", "a"), model("m", "b", resource="x/late"), model("n", "a", resource="x/n")], [])

    assert [(m.resource, m.names) for m in picture.registry.models] == [("default/good", ("m", "a")), ("x/n", ("n",))]
    assert picture.shadowed == (
        "x/late is not reached as m, which default/good had before",
        "x/n is not reached as a, which default/good had before",
    )


names = st.sampled_from("abcd")


@given(st.lists(st.tuples(names, st.lists(names, max_size=3, unique=True)), max_size=6))
def test_every_name_leads_to_the_oldest_that_can_be_reached_and_has_it(told: list[tuple[str, list[str]]]) -> None:
    models = [model(name, *aliases, resource=f"r/{i}") for i, (name, aliases) in enumerate(told)]

    registry = draw(models, []).registry

    shown = {m.resource for m in registry.models}
    listed = [name for m in registry.models for name in m.names]
    assert len(listed) == len(set(listed)) or any(m.name in m.aliases for m in models)
    for m in models:
        if m.resource in shown:
            assert registry.find(m.name) in registry.models
            assert getattr(registry.find(m.name), "resource", "") <= m.resource


# what is watched


class Seen:
    """What was published."""

    def __init__(self) -> None:
        self.registry: Registry | None = None
        self.times = 0

    def take(self, registry: Registry) -> None:
        self.registry, self.times = registry, self.times + 1

    def engines(self, name: str = "quire-tiny") -> list[str] | None:
        found = self.registry.find(name) if self.registry is not None else None
        return None if found is None else [e.address for e in found.endpoints]


@contextlib.asynccontextmanager
async def following(api: ApiServer, take: Callable[[Registry], None], *namespaces: str) -> AsyncIterator[ClusterWorld]:
    async with api.client() as client:
        world = ClusterWorld(client, list(namespaces), take)
        running = asyncio.create_task(world.run())
        try:
            yield world
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


def with_api(scenario: Callable[[ApiServer, Seen], Awaitable[None]], **how: bool) -> None:
    async def main() -> None:
        api = ApiServer(**how)
        await api.start()
        try:
            await asyncio.wait_for(scenario(api, Seen()), 30)
        finally:
            await api.stop()

    asyncio.run(main())


def test_resources_and_engines_come_and_go() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        for number in range(5):  # more than a page
            await api.put("llmdeployments", good(metadata__name=f"m{number}", spec__model__name=f"model-{number}"))
        async with following(api, seen.take) as world:
            assert world.missing() is not None
            await until(lambda: world.missing() is None and seen.engines("model-4") == [])

            uid = await api.put("endpointslices", slice_of("m4", "10.0.0.1", "10.0.0.2"))
            await until(lambda: seen.engines("model-4") == ["10.0.0.1:8000", "10.0.0.2:8000"])
            await api.put("endpointslices", slice_of("m4", "10.0.0.2"))
            await until(lambda: seen.engines("model-4") == ["10.0.0.2:8000"])
            await api.delete("endpointslices", uid)
            await until(lambda: seen.engines("model-4") == [])
            await api.delete("llmdeployments", "default/m4")
            await until(lambda: seen.engines("model-4") is None)
            assert world.silent_s() == 0

    with_api(scenario)


def test_nothing_is_told_before_everything_was_listed() -> None:
    """Else a router that was just started would say of models that are there that they are not."""

    async def scenario(api: ApiServer, seen: Seen) -> None:
        async with following(api, seen.take):
            await until(lambda: seen.times)
            assert seen.registry == Registry()

    with_api(scenario)


def test_a_watch_that_is_cut_goes_on_where_it_was() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        async with following(api, seen.take) as world:
            await until(lambda: api.watches == 2)
            lists = api.lists
            await api.cut()
            await api.put("endpointslices", slice_of("good", "10.0.0.1"))

            await until(lambda: seen.engines() == ["10.0.0.1:8000"])

            assert api.lists == lists
            await until(lambda: world.silent_s() == 0)

    with_api(scenario)


@pytest.mark.parametrize("as_event", [True, False])
def test_a_version_that_is_forgotten_means_a_list_and_what_vanished_meanwhile_goes(as_event: bool) -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        uid = await api.put("endpointslices", slice_of("good", "10.0.0.1"))
        async with following(api, seen.take):
            await until(lambda: seen.engines() == ["10.0.0.1:8000"] and api.watches == 2)
            lists = api.lists
            await api.stop()
            await api.delete("endpointslices", uid)
            api.compact()
            await api.start()

            await until(lambda: seen.engines() == [])

            assert api.lists > lists

    with_api(scenario, gone_as_event=as_event)


def test_a_watch_that_is_refused_means_a_list() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        api.refuses = 5
        async with following(api, seen.take) as world:
            await until(lambda: api.lists == 2 + 5)

            await api.put("endpointslices", slice_of("good", "10.0.0.1"))

            await until(lambda: seen.engines() == ["10.0.0.1:8000"])
            assert (api.lists, world.silent_s()) == (2 + 5, 0)

    with_api(scenario)


def test_while_the_api_server_is_away_what_it_said_last_stays_and_its_silence_shows() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        await api.put("endpointslices", slice_of("good", "10.0.0.1"))
        async with following(api, seen.take) as world:
            await until(lambda: seen.engines() == ["10.0.0.1:8000"] and api.watches == 2)
            await api.stop()
            await until(lambda: world.silent_s() > 0)
            assert (seen.engines(), world.missing()) == (["10.0.0.1:8000"], None)

            await api.start()

            await until(lambda: world.silent_s() == 0)

    with_api(scenario)


def test_what_cannot_be_read_says_what_it_said_before() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        async with following(api, seen.take):
            await until(lambda: seen.engines() == [])
            await api.put("llmdeployments", good(spec__of_a_later_version=True))
            await api.put("llmdeployments", good(metadata__name="bad", spec__model=None))
            await api.put("llmdeployments", good(metadata__name="other", spec__model__name="other"))

            await until(lambda: seen.engines("other") == [])

            assert seen.registry is not None
            assert [m.name for m in seen.registry.models] == ["quire-tiny", "other"]

    with_api(scenario)


def test_only_the_namespaces_that_were_named_are_watched() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        for name in ("a", "b", "c"):
            await api.put("llmdeployments", good(metadata__namespace=name, metadata__name=name, spec__model__name=name))
        async with following(api, seen.take, "a", "c"):
            await until(lambda: seen.registry is not None)

            assert seen.registry is not None
            assert sorted(m.name for m in seen.registry.models) == ["a", "c"]

    with_api(scenario)


def test_what_a_resource_declares() -> None:
    scaling = {"mode": "Builtin", "min": 0, "max": 3, "scaleToZero": {"wake": {"maxQueued": 7, "maxWait": "2m"}}}
    event = {"at": "2026-01-01T00:00:00Z", "before": 1, "desired": 3, "reason": "DemandAboveCapacity", "inputs": {}}
    status = {"autoscaling": {"desired": 3, "history": [event]}}
    more = {"spec__access": {"groups": ["team-a"]}, "spec__routing": {"strategy": "LeastLoaded"}}

    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put(
            "llmdeployments",
            {**good(spec__autoscaling=scaling, spec__model__aliases=["chat"], **more), "status": status},
        )
        async with following(api, seen.take):
            await until(lambda: seen.engines("chat") == [])
            assert seen.registry is not None
            (declared,) = seen.registry.models

        assert (declared.resource, declared.desired, declared.loading) == ("default/good", 3, 3)
        assert (declared.hold_requests, declared.hold_s) == (7, 120)
        assert (declared.groups, declared.strategy) == (("team-a",), Strategy.LEAST_LOADED)
        assert [(each.before, each.after) for each in declared.history] == [(1, 3)]

    with_api(scenario)


# as a router


async def routed(api: ApiServer, scenario: Callable[[Router, int, int], Awaitable[None]]) -> None:
    router = Router()
    port, inside = await router.start("127.0.0.1", 0), await router.backstage.start("127.0.0.1", 0)
    try:
        async with following(api, router.replace) as router.world:
            await scenario(router, port, inside)
    finally:
        await router.stop(1)
        while Client.opened:
            Client.opened.pop().writer.close()
        await asyncio.sleep(0.01)


async def ok(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(plain(b"ok"))


def test_a_router_that_starts_while_a_model_is_at_zero_holds_for_it_and_says_so_backstage() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        async with Backend(ok) as backend:

            async def play(router: Router, port: int, inside: int) -> None:
                unready, _, _ = await _get(inside, "/readyz")
                assert unready == 503
                await until(lambda: router.world.missing() is None and router.registry.models)
                client = await Client.connect(port)
                client.ask(model="quire-tiny")
                await until(lambda: router.demand()["quire-tiny"].held == 1)
                told = json.loads((await _get(inside, "/demand"))[2])
                assert told == {"demand": {"default/good": {"held": 1, "inFlight": 0}}}

                host, _, at = backend.address.rpartition(":")
                await api.put("endpointslices", slice_of("good", host, port=int(at)))

                assert (await client.answer())[0] == 200
                assert json.loads((await _get(inside, "/demand"))[2]) == {"demand": {}}

            await routed(api, play)

    with_api(scenario)


def test_an_engine_that_leaves_gets_nothing_more_within_a_second() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())
        async with Backend(ok) as old, Backend(ok) as new:
            at = [int(each.address.rpartition(":")[2]) for each in (old, new)]

            async def play(router: Router, port: int, inside: int) -> None:
                await api.put("endpointslices", slice_of("good", "127.0.0.1", port=at[0]))
                await until(lambda: router.registry.models and router.registry.models[0].endpoints)
                began = asyncio.get_running_loop().time()
                await api.put("endpointslices", slice_of("good", "127.0.0.1", port=at[1]))
                await until(lambda: router.registry.models[0].endpoints == (Endpoint(address=new.address),))
                assert asyncio.get_running_loop().time() - began < 1
                client = await Client.connect(port)
                client.ask(model="quire-tiny")
                assert (await client.answer())[0] == 200

            await routed(api, play)
            assert (len(old.requests), len(new.requests)) == (0, 1)

    with_api(scenario)


def test_silence_of_the_api_server_is_in_the_metrics_and_takes_no_router_away() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        await api.put("llmdeployments", good())

        async def play(router: Router, port: int, inside: int) -> None:
            await until(lambda: router.registry.models)
            assert (await _get(inside, "/readyz"))[2] == b"ok"
            await api.stop()
            await until(lambda: router.world.silent_s() > 0)

            status, _, said = await _get(port, "/readyz")

            assert (status, said[:30]) == (200, b"ok, but nothing new was told f")
            metrics = (await _get(inside, "/metrics"))[2].decode()
            silence = next(line for line in metrics.splitlines() if line.startswith("quire_router_registry_silent"))
            assert float(silence.split()[1]) > 0
            await api.start()

        await routed(api, play)

    with_api(scenario)


def test_backstage_serves_nothing_else() -> None:
    async def scenario(api: ApiServer, seen: Seen) -> None:
        async def play(router: Router, port: int, inside: int) -> None:
            for path in ("/state", "/v1/models", "/ui", "/"):
                assert (await _get(inside, path))[0] == 404
            assert (await _get(port, "/demand"))[0] == 400  # as all that names no model

        await routed(api, play)

    with_api(scenario)


async def _get(port: int, path: str) -> tuple[int, bytes, bytes]:
    client = await Client.connect(port)
    client.send(b"", path, "GET")
    return await client.answer()
