"""The shell around the autoscaler: what it makes of engines and routers that answer, are silent, and talk nonsense."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes.backend import Backend, plain
from fakes.resources import good
from fakes.routing import Client, until

from quire_api import LLMDeployment
from quire_api.errors import InvalidInput
from quire_api.reasons import ScaleReason
from quire_api.status import AutoscalingStatus, DeploymentStatus
from quire_operator.asking import ask
from quire_operator.cli import operator
from quire_operator.planner.scaling import condition
from quire_operator.reconcile import ResourceKey
from quire_operator.render.kubernetes import render
from quire_operator.router_state import InProcess, NoRouter, Routers, addresses_of
from quire_operator.scrape import Demanded, Scraper, Target
from quire_operator.settings import OperatorSettings
from quire_router import Demand, Model, Registry, Router

KEY = ResourceKey("default", "good")
LOAD = {
    "inside": 0, "running": 0, "waiting": 0, "kv_usage": 0.0, "kv_tokens": 10_000, "max_num_seqs": 10, "preemptions": 0, "finished": 0,
}  # fmt: skip
SCALING = {"mode": "Builtin", "min": 0, "max": 5, "scaleToZero": {"idleAfter": "60s"}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Routing:
    """Routers that say what a test has them say."""

    def __init__(self, *, holds: bool | None = True, held: int = 0, in_flight: int = 0) -> None:
        self.holds = holds
        self.demanded = Demanded(held=held, in_flight=in_flight)

    def demand(self, key: ResourceKey) -> Demanded:
        return self.demanded if key == KEY else Demanded(held=0, in_flight=0)


class Scene:
    """A scraper that looks when it is told to, five seconds apart."""

    def __init__(self, routing: Any = None, status: DeploymentStatus | None = None) -> None:
        self.clock = Clock()
        self.woken: list[ResourceKey] = []
        self.ready: dict[str, str] = {}
        self.replicas = 0
        self._status = status
        self.scraper = Scraper(list, routing or Routing(), self.woken.append, clock=self.clock)

    async def look(self, times: int = 1) -> Any:
        deployment = LLMDeployment.parse(good(spec__autoscaling=SCALING))
        for _ in range(times):
            self.clock.now += 5
            await self.scraper.look(
                [Target(key=KEY, deployment=deployment, status=self._status, replicas=self.replicas, ready=self.ready)]
            )
        return self.scraper.decision(KEY)


def says(**said: Any) -> Backend:
    """An engine."""

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        assert request.startswith(b"GET /load HTTP/1.0\r\n")
        writer.write(plain(json.dumps({**LOAD, **said}).encode()))
        writer.close()

    return Backend(script)


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


# what is looked at


def test_what_engines_say_is_what_is_decided_from() -> None:
    async def scenario() -> None:
        async with (
            says(running=3, waiting=2, kv_usage=0.5, ttft_p95_s=None) as one,
            says(running=1, ttft_p95_s=1.5) as two,
        ):
            scene = Scene(Routing(held=4))
            scene.replicas, scene.ready = 2, {"one": one.address, "two": two.address}

            seen = (await scene.look()).inputs

            assert (seen.replicas, seen.ready, seen.running, seen.waiting) == (2, 2, 4, 6)
            assert (seen.kv_usage, seen.ttft_p95_s) == (0.25, 1.5)

    run(scenario)


NONSENSE = (b"no json", b"[]", b"3", b'{"running": 1}', b'{"running": "many"}', b"[" * 100_000)


@pytest.mark.parametrize("answer", [*map(plain, NONSENSE), plain(b"{}", "503 Service Unavailable"), b"", b"not HTTP"])
def test_an_engine_that_talks_nonsense_is_silent(answer: bytes) -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.close()

    async def scenario() -> None:
        async with Backend(script) as engine:
            scene = Scene()
            scene.replicas, scene.ready = 1, {"e": engine.address}

            assert (await scene.look()).reason is ScaleReason.METRICS_UNAVAILABLE

    run(scenario)


def test_an_engine_may_miss_two_looks_and_is_judged_by_what_it_said_last() -> None:
    async def scenario() -> None:
        scene = Scene()
        async with says(running=7) as engine:
            scene.replicas, scene.ready = 1, {"e": engine.address}
            await scene.look()
        scene.ready = {"e": "127.0.0.1:1"}

        looks = [(await scene.look()).reason is ScaleReason.METRICS_UNAVAILABLE for _ in range(4)]

        assert looks == [False, False, True, True]

    run(scenario)


def test_a_resource_that_is_no_longer_scaled_is_forgotten() -> None:
    async def scenario() -> None:
        scene = Scene()
        await scene.look()

        await scene.scraper.look([])

        assert scene.scraper.decision(KEY) is None

    run(scenario)


def test_a_resource_is_woken_for_news_and_not_for_every_look() -> None:
    async def scenario() -> None:
        async with says() as engine:
            scene = Scene(routing := Routing())
            scene.replicas, scene.ready = 1, {"e": engine.address}
            await scene.look(5)
            assert scene.woken == [KEY]  # the first decision

            routing.holds = None
            await scene.look(5)
            assert scene.woken == [KEY] * 2  # its condition says so

            scene.ready = {"e": "127.0.0.1:1"}
            await scene.look(6)
            assert scene.woken == [KEY] * 3

    run(scenario)


# zero


def test_idle_for_long_enough_is_zero_and_work_that_routers_know_of_is_not_idle() -> None:
    async def scenario() -> None:
        async with says() as engine:
            scene = Scene(routing := Routing(in_flight=1))
            scene.replicas, scene.ready = 1, {"e": engine.address}
            assert (await scene.look(30)).desired == 1

            routing.demanded = Demanded(held=0, in_flight=0)

            assert (await scene.look(11)).desired == 1
            decision = await scene.look()
            assert (decision.desired, decision.reason) == (0, ScaleReason.IDLE)

    run(scenario)


@pytest.mark.parametrize(
    ("routing", "desired", "reason"),
    [
        (Routing(held=1), 1, ScaleReason.WOKEN),
        (Routing(), 0, ScaleReason.AT_ZERO),
        (Routing(holds=None), 0, ScaleReason.AT_ZERO),  # an outage must not load every model that sleeps
        (NoRouter(), 1, ScaleReason.WOKEN),  # nobody else would
    ],
)
def test_at_zero(routing: Any, desired: int, reason: ScaleReason) -> None:
    async def scenario() -> None:
        scene = Scene(routing, DeploymentStatus(autoscaling=AutoscalingStatus(desired=0)))

        decision = await scene.look(3)

        assert (decision.desired, decision.reason) == (desired, reason)

    run(scenario)


@pytest.mark.parametrize("routing", [Routing(holds=None), NoRouter()])
def test_nothing_goes_to_zero_while_no_router_is_known_to_hold(routing: Any) -> None:
    async def scenario() -> None:
        async with says() as engine:
            scene = Scene(routing)
            scene.replicas, scene.ready = 1, {"e": engine.address}

            assert (await scene.look(60)).desired == 1

    run(scenario)


@pytest.mark.parametrize(
    ("holds", "status", "words"),
    [
        (True, "True", "as demand asks; spec.replicas is ignored"),
        (False, "True", "not to zero, for there is no router"),
        (None, "False", "no router answers /demand"),
    ],
)
def test_the_condition_says_what_routers_do(holds: bool | None, status: str, words: str) -> None:
    async def scenario() -> None:
        scene = Scene(Routing(holds=holds))
        scene.replicas = 1

        told = condition(LLMDeployment.parse(good(spec__autoscaling=SCALING)), await scene.look())

        assert told is not None
        assert told.status == status
        assert words in told.message

    run(scenario)


# routers


class FakeRouter:
    """`/demand` of one router."""

    def __init__(self) -> None:
        self.address = ""
        self.demand: dict[str, Any] = {}
        self.answer: bytes | None = None

    async def __aenter__(self) -> "FakeRouter":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(plain(json.dumps({"demand": self.demand}).encode()) if self.answer is None else self.answer)
        writer.close()


def at(*routers: FakeRouter) -> Callable[[], Awaitable[list[str]]]:
    async def addresses() -> list[str]:
        return [router.address for router in routers]

    return addresses


def test_the_demand_at_all_routers_is_added_up() -> None:
    async def scenario() -> None:
        async with FakeRouter() as one, FakeRouter() as two:
            one.demand = {"default/good": {"held": 2, "inFlight": 1}}
            two.demand = {"default/good": {"held": 3, "inFlight": 0}, "x/other": {"held": 9, "inFlight": 9}}
            routers = Routers(at(one, two), lambda: None)
            assert routers.holds is None

            await routers.look()

            assert (routers.holds, routers.demand(KEY)) == (True, Demanded(held=5, in_flight=1))
            assert routers.demand(ResourceKey("default", "quiet")) == Demanded(held=0, in_flight=0)

    run(scenario)


def test_the_first_that_is_held_for_has_the_autoscaler_look_and_no_later_one() -> None:
    async def scenario() -> None:
        async with FakeRouter() as one:
            looks: list[int] = []
            routers = Routers(at(one), lambda: looks.append(1))
            for held, in_all in ((0, 0), (1, 1), (5, 1), (0, 1), (1, 2)):
                one.demand = {"default/good": {"held": held, "inFlight": 0}}
                await routers.look()
                assert len(looks) == in_all

    run(scenario)


def test_a_router_that_is_silent_for_a_while_is_no_longer_counted_on() -> None:
    async def scenario() -> None:
        clock = Clock()
        async with FakeRouter() as one:
            routers = Routers(at(one), lambda: None, clock)
            one.demand = {"default/good": {"held": 2, "inFlight": 0}}
            await routers.look()
        clock.now += 2
        await routers.look()
        assert (routers.holds, routers.demand(KEY).held) == (True, 2)

        clock.now += 2
        await routers.look()

        assert (routers.holds, routers.demand(KEY).held) == (None, 0)

    run(scenario)


@pytest.mark.parametrize("answer", [plain(b"{}"), plain(b'{"demand": {"a": 1}}'), plain(b"[]"), b""])
def test_a_router_that_talks_nonsense_is_silent(answer: bytes) -> None:
    async def scenario() -> None:
        async with FakeRouter() as one:
            one.answer = answer
            routers = Routers(at(one), lambda: None)

            await routers.look()

            assert routers.holds is None

    run(scenario)


def test_a_name_leads_to_all_its_addresses_or_to_none() -> None:
    assert set(asyncio.run(addresses_of("localhost:80"))) <= {"127.0.0.1:80", "[::1]:80"}
    assert asyncio.run(addresses_of("127.0.0.1:8081")) == ["127.0.0.1:8081"]
    assert asyncio.run(addresses_of("nowhere.invalid.:80")) == []


def test_a_request_that_is_held_is_looked_at_at_once() -> None:
    """The scraper's own pace is seconds; what wakes a model does not wait for it."""

    async def scenario() -> None:
        async with FakeRouter() as one:
            woken: asyncio.Queue[ResourceKey] = asyncio.Queue()
            routers = Routers(at(one), lambda: scraper.look_now())
            deployment = LLMDeployment.parse(good(spec__autoscaling=SCALING))
            status = DeploymentStatus(autoscaling=AutoscalingStatus(desired=0))
            target = Target(key=KEY, deployment=deployment, status=status, replicas=0, ready={})
            scraper = Scraper(lambda: [target], routers, woken.put_nowait, every_s=3600)
            tasks = [asyncio.create_task(routers.run()), asyncio.create_task(scraper.run())]
            await woken.get()  # the first look
            one.demand = {"default/good": {"held": 1, "inFlight": 0}}

            async with asyncio.timeout(3):  # policy: the panic window's half is 5 s
                await woken.get()

            decision = scraper.decision(KEY)
            assert decision is not None
            assert (decision.desired, decision.reason) == (1, ScaleReason.WOKEN)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario)


def test_real_routers_that_hold_one_request_each_wake_once() -> None:
    async def scenario() -> None:
        holding = [Router(), Router()]
        inside = [await router.backstage.start("127.0.0.1", 0) for router in holding]
        looks: list[int] = []

        async def addresses() -> list[str]:
            return [f"127.0.0.1:{port}" for port in inside]

        routers = Routers(addresses, lambda: looks.append(1))
        clients = []
        for router in holding:
            router.replace(Registry((Model(name="m", resource="default/good"),)))
            clients.append(await Client.connect(await router.start("127.0.0.1", 0)))
            clients[-1].ask()
        await until(lambda: all(router.demand()["m"].held == 1 for router in holding))

        await routers.look()
        await routers.look()

        assert (routers.holds, routers.demand(KEY)) == (True, Demanded(held=2, in_flight=0))
        assert len(looks) == 2  # one for each that was news; the decision is one
        scene = Scene(routers, DeploymentStatus(autoscaling=AutoscalingStatus(desired=0)))
        assert [(d := await scene.look()).desired for _ in range(2)] == [1, 1]
        assert d.reason is ScaleReason.WOKEN
        for router in holding:
            await router.stop(0)
        assert {(await client.answer())[0] for client in clients} == {503}
        while Client.opened:
            Client.opened.pop().writer.close()
        await asyncio.sleep(0.01)

    run(scenario)


def test_the_router_of_this_process_is_asked_by_resource() -> None:
    at_router = {"m": Demand(held=1, in_flight=2, tokens=3, resource="default/good")}

    routing = InProcess(lambda: at_router)

    assert (routing.holds, routing.demand(KEY)) == (True, Demanded(held=1, in_flight=2))
    assert routing.demand(ResourceKey("x", "good")) == Demanded(held=0, in_flight=0)


def test_nobody_there_is_no_answer() -> None:
    assert asyncio.run(ask("127.0.0.1:1", "/load", 1)) is None
    assert asyncio.run(ask("/nowhere.sock", "/load", 1)) is None


@pytest.mark.parametrize("flag", ["--routers=here", "--routers=here:x", "--routers=:80", "--port=x"])
def test_a_bad_address_is_one_sentence(flag: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{flag.partition('=')[0]}: .* is not "):
        operator([flag])


def test_an_operator_without_routers_is_taken() -> None:
    """What is wrong with this one comes after the addresses."""
    with pytest.raises(InvalidInput, match=r"^/nowhere: there is no such file"):
        operator(["--no-lease", "--profiles=/nowhere"])


def test_the_url_is_the_routers_where_there_are_any() -> None:
    deployment = LLMDeployment.parse(good())

    urls = [render(deployment, OperatorSettings(router_url=url)).url for url in ("", "https://router/v1")]

    assert urls == ["http://good.default.svc.cluster.local/v1", "https://router/v1"]
