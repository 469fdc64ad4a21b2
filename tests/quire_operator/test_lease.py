"""One operator at a time: who may take the Lease, who loses it, and that nothing is written without it."""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fakes.leases import LeaseServer
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.dynamic.exceptions import ResourceNotFoundError

from quire_api.errors import InvalidInput
from quire_operator.backends.client import NotHolding, WritingClient, what_is_written
from quire_operator.keeper import Keeper
from quire_operator.lease import Lease, LeaseLost, Pace
from quire_operator.settings import LeaseName

QUICK = Pace(duration_s=15, deadline_s=10, retry_s=0.02, request_s=0.2, patience_s=30)
NAME = LeaseName("system", "quire-operator")


class Clock:
    """Moved by the test alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(story: Callable[[LeaseServer, ApiClient], Coroutine[Any, Any, None]]) -> LeaseServer:
    async def main() -> LeaseServer:
        server = LeaseServer()
        async with server.running(), server.client() as api:
            await asyncio.wait_for(story(server, api), 30)
        return server

    return asyncio.run(main())


def lease(api: ApiClient, identity: str, clock: Clock) -> Lease:
    return Lease(api, NAME, identity, QUICK, clock)


async def still_waits(server: LeaseServer, taking: "asyncio.Task[None]") -> bool:
    await server.requests(4)
    return not taking.done()


def test_the_first_one_makes_the_lease_and_renews_it() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        first = dict(server.lease or {})
        keeping = asyncio.create_task(one.keep())
        await server.requests(3)
        keeping.cancel()

        assert first["spec"] | {"acquireTime": "", "renewTime": ""} == {
            "holderIdentity": "one", "leaseDurationSeconds": 15, "leaseTransitions": 0, "acquireTime": "", "renewTime": "",
        }  # fmt: skip
        assert server.lease is not None
        assert server.lease["spec"]["acquireTime"] == first["spec"]["acquireTime"]
        assert server.lease["spec"]["renewTime"] > first["spec"]["renewTime"]
        assert one.held

    run(story)


def test_a_lease_that_is_renewed_is_never_taken_whatever_the_clocks_say() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one, waiting = lease(api, "one", Clock()), Clock()
        two = lease(api, "two", waiting)
        await one.take()
        assert server.lease is not None
        server.lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"  # a clock that is a quarter of a century late
        taking = asyncio.create_task(two.take())
        await server.requests(2)
        for _ in range(5):
            waiting.now += 14
            server.lease["metadata"]["resourceVersion"] += "0"  # as renewing does
            assert await still_waits(server, taking)
        taking.cancel()

    assert run(story).writers == ["one"]


def test_a_holder_that_was_killed_is_followed_after_its_own_duration() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        clock = Clock()
        one, two = lease(api, "one", clock), lease(api, "two", clock)
        await one.take()
        taking = asyncio.create_task(two.take())
        await server.requests(2)
        clock.now += 14.9
        assert await still_waits(server, taking)
        assert not one.held  # long before anybody else could have it

        clock.now += 0.2
        await taking

        assert two.held
        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 1

    assert run(story).writers == ["one", "two"]


def test_a_holder_that_ends_in_order_is_followed_at_once() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one, two = lease(api, "one", Clock()), lease(api, "two", Clock())
        await one.take()
        taking = asyncio.create_task(two.take())
        assert await still_waits(server, taking)

        await one.release()
        await taking

        assert two.held
        assert not one.held

    assert run(story).writers == ["one", "", "two"]


def test_of_several_that_want_it_one_has_it() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        all_of_them = [lease(api, str(number), Clock()) for number in range(5)]
        taking = [asyncio.create_task(each.take()) for each in all_of_them]
        await server.requests(20)

        assert sum(task.done() for task in taking) == 1
        assert [each.held for each in all_of_them].count(True) == 1
        for task in taking:
            task.cancel()

    assert len(run(story).writers) == 1


@pytest.mark.parametrize("how", ["hangs", "refuses"])
def test_a_holder_that_cannot_renew_gives_up_before_others_may_have_it(how: str) -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = Lease(api, NAME, "one", Pace(duration_s=15, deadline_s=0.5, retry_s=0.02, request_s=0.2))
        await one.take()
        setattr(server, how, 500 if how == "refuses" else True)

        with pytest.raises(LeaseLost, match="could not be renewed for"):
            await one.keep()
        server.hangs, server.refuses = False, 0
        await one.release()

        assert not one.held

    assert run(story).writers == ["one"]  # nothing is given back that may be another's


def test_an_outage_that_ends_in_time_costs_nothing() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        keeping = asyncio.create_task(one.keep())
        server.hangs = True
        await server.requests(2)
        server.hangs, server.refuses = False, 503
        await server.requests(2)
        server.refuses = 0
        renewals = len(server.writers)
        await server.requests(4)

        assert not keeping.done()
        assert len(server.writers) > renewals
        keeping.cancel()

    run(story)


def test_a_write_whose_answer_was_lost_is_known_for_ours() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        server.loses_answers = 1
        one = lease(api, "one", Clock())

        await one.take()

        assert server.lease is not None
        assert server.lease["spec"]["leaseTransitions"] == 0

    assert run(story).writers == ["one", "one"]


def test_a_renewal_whose_answer_was_lost_is_no_reason_to_give_up() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        server.loses_answers = 1
        keeping = asyncio.create_task(one.keep())
        await server.requests(1)
        renewals = len(server.writers)
        await server.requests(4)

        assert not keeping.done()
        assert len(server.writers) > renewals + 1
        keeping.cancel()

    run(story)


def test_a_lease_that_somebody_else_took_is_lost_at_once() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        assert server.lease is not None
        server.lease["spec"]["holderIdentity"] = "two"
        server.lease["metadata"]["resourceVersion"] = "99"

        with pytest.raises(LeaseLost, match="somebody else's"):
            await one.keep()

    assert run(story).writers == ["one"]


def test_a_lease_that_was_deleted_is_made_anew() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        server.lease = None
        keeping = asyncio.create_task(one.keep())
        await server.requests(4)
        keeping.cancel()

        assert server.lease is not None

    run(story)


def test_waiting_outlasts_an_outage() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        server.hangs = True
        taking = asyncio.create_task(lease(api, "one", Clock()).take())
        await server.requests(2)
        server.hangs = False

        await taking

    run(story)


def test_missing_rights_are_said_to_who_has_waited_for_them() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        server.refuses, clock = 403, Clock()
        taking = asyncio.create_task(lease(api, "one", clock).take())
        assert await still_waits(server, taking)

        clock.now += QUICK.patience_s

        with pytest.raises(InvalidInput, match=r"system/quire-operator .* allow get, create and update .* --no-lease"):
            await taking

    run(story)


def test_a_server_that_denies_for_a_moment_ends_nobody() -> None:
    async def story(server: LeaseServer, api: ApiClient) -> None:
        clock = Clock()
        for _ in range(2):  # each time anew
            server.refuses = 401
            taking = asyncio.create_task(lease(api, "one", clock).take())
            assert await still_waits(server, taking)
            clock.now += QUICK.patience_s - 1
            assert await still_waits(server, taking)

            server.refuses = 0

            await taking

    run(story)


def test_without_the_lease_nothing_is_written_and_what_is_written_is_counted() -> None:
    held, wrote = [True], []

    async def story(server: LeaseServer, api: ApiClient) -> None:
        one = lease(api, "one", Clock())
        await one.take()
        path = "/apis/coordination.k8s.io/v1/namespaces/system/leases/quire-operator"
        writer = WritingClient(api, lambda: held[0], lambda verb, what: wrote.append((verb, what)))
        await writer.request("put", path, body=server.lease)
        held[0] = False

        with pytest.raises(NotHolding):
            await writer.request("put", path, body=server.lease)
        await writer.request("get", path)

    server = run(story)

    assert server.writers == ["one", "one"]
    assert wrote == [("update", "leases")]


class Discovery:
    """A server that says what it serves: a kind of its own, or nothing."""

    def __init__(self) -> None:
        self.serves = True

    async def answer(self, request: web.Request) -> web.Response:
        group = {"name": "x.io", "preferredVersion": {"version": "v1"}, "versions": [{"version": "v1"}]}
        thing = {"name": "things", "singularName": "thing", "kind": "Thing", "namespaced": True, "verbs": ["list"]}
        said: dict[str, dict[str, object]] = {
            "/version": {"major": "1", "minor": "33"},
            "/apis": {"kind": "APIGroupList", "groups": [group] if self.serves else []},
            "/api/v1": {"kind": "APIResourceList", "resources": []},
        } | ({"/apis/x.io/v1": {"kind": "APIResourceList", "resources": [thing]}} if self.serves else {})
        found = said.get(request.path)
        return web.json_response(found or {}, status=200 if found else 404)


def test_what_a_server_serves_is_believed_by_nobody_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the next operator either, with the same address and the same /tmp."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    async def story() -> list[bool]:
        discovery, seen = Discovery(), []
        application = web.Application()
        application.router.add_get("/{path:.*}", discovery.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        for serves in (True, False):
            discovery.serves = serves
            async with ApiClient(Configuration(host=address)) as api:
                client = WritingClient(api, lambda: True, lambda verb, what: None)
                await client
                with contextlib.suppress(ResourceNotFoundError):
                    await client.resources.get(api_version="x.io/v1", kind="Thing")
                    seen.append(serves)
        await runner.cleanup()
        return seen

    assert asyncio.run(story()) == [True]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/api/v1/namespaces/n/services/s", "services"),
        ("/apis/apps/v1/namespaces/n/deployments", "deployments"),
        ("/apis/apps/v1/namespaces/n/deployments/d/scale", "deployments/scale"),
        ("/apis/quire.dev/v1alpha1/namespaces/n/llmdeployments/l/status", "llmdeployments/status"),
    ],
)
def test_what_is_written_is_read_from_the_path(path: str, what: str) -> None:
    assert what_is_written(path) == what


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "one of the arguments --lease --no-lease is required"),
        (["--lease=a/b", "--no-lease"], "not allowed with"),
        (["--lease=quire-operator"], "quire-operator is not NAMESPACE/NAME"),
        (["--lease=a/b"], "no cluster: not in a pod, and no kubeconfig"),
        (["--no-lease"], "no cluster: not in a pod, and no kubeconfig"),
    ],
)
def test_whether_there_is_a_lease_has_to_be_said(flags: list[str], says: str) -> None:
    environment = {**os.environ, "KUBECONFIG": "/nowhere/at/all"}
    command = [sys.executable, "-m", "quire_api", "operator", "--port=0", *flags]

    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert done.returncode == 2, done.stderr
    assert says in done.stderr


# ---------------------------------------------------------------------- in a thread of its own


PACE = Pace(duration_s=2, deadline_s=0.6, retry_s=0.1, request_s=0.3, patience_s=0.2)


class Elsewhere:
    """The server on a loop of its own, which nobody here can hold up."""

    def __init__(self) -> None:
        self.server = LeaseServer()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    def __enter__(self) -> LeaseServer:
        self._thread.start()
        self._ready.wait(10)
        return self.server

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        async with self.server.running():
            self._ready.set()
            await self._over.wait()


def keeper_of(server: LeaseServer) -> Keeper:
    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Lease]:
        async with server.client() as api:
            yield Lease(api, NAME, "one", PACE)

    return Keeper(connect)


def test_a_loop_that_stands_still_does_not_cost_the_lease() -> None:
    async def story(server: LeaseServer) -> None:
        keeper = keeper_of(server)
        await keeper.take()

        time.sleep(3 * PACE.deadline_s)  # noqa: ASYNC251  # that is the point

        assert keeper.held
        await keeper.release()
        assert not keeper.held

    with Elsewhere() as server:
        asyncio.run(story(server))
        assert server.writers[0] == "one"
        assert server.writers[-1] == ""


def test_how_the_lease_was_lost_reaches_the_loop_of_the_operator() -> None:
    async def story(server: LeaseServer) -> None:
        keeper = keeper_of(server)
        await keeper.take()
        server.refuses = 500

        with pytest.raises(LeaseLost, match="could not be renewed"):
            await asyncio.wait_for(keeper.keep(), 10)

        assert not keeper.held
        await keeper.release()

    with Elsewhere() as server:
        asyncio.run(story(server))


def test_missing_rights_reach_the_loop_of_the_operator() -> None:
    async def story(server: LeaseServer) -> None:
        server.refuses = 403
        keeper = keeper_of(server)

        with pytest.raises(InvalidInput, match="may not use lease"):
            await asyncio.wait_for(keeper.take(), 10)

        await keeper.release()

    with Elsewhere() as server:
        asyncio.run(story(server))


def test_who_waits_can_be_told_to_end() -> None:
    async def story(server: LeaseServer) -> None:
        server.hangs = True
        keeper = keeper_of(server)
        taking = asyncio.create_task(keeper.take())
        await asyncio.sleep(0.2)
        taking.cancel()

        await asyncio.wait_for(keeper.release(), 10)

        assert not any(thread.name == "lease" for thread in threading.enumerate())

    with Elsewhere() as server:
        asyncio.run(story(server))
