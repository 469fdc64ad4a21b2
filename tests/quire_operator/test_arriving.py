"""How far weights are: asked of those that fetch them, and said in the status."""

import asyncio
import json
from typing import Any

import pytest
from fakes.backend import Backend, plain

from quire_api.status import WeightsStatus
from quire_operator.backends.fetches import Fetches, Fetching
from quire_operator.planner.arriving import arriving
from quire_operator.planner.observed import Instance, Progress
from quire_operator.reconcile import ResourceKey

KEY = ResourceKey("default", "good")


def fetching(name: str, percent: int | None = None, **more: Any) -> Instance:
    said = Progress(phase="downloading", percent=percent, bytes_per_second=percent) if percent is not None else None
    return Instance(name=name, ready=False, fetching=True, progress=said, **more)


def done(name: str) -> Instance:
    return Instance(name=name, ready=True, fetched_at="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("instances", "told"),
    [
        ([], None),
        ([Instance(name="a", ready=True)], None),
        ([done("a"), done("b")], WeightsStatus(progress_percent=100)),
        ([fetching("a")], WeightsStatus(message="a fetches, and has not said yet how far it is")),
        (
            [done("a"), fetching("b", 40), fetching("c", 20), fetching("d")],
            WeightsStatus(
                progress_percent=20,
                bytes_per_second=20,
                message="c: downloading; 2 more fetch, 1 of them has not said how far",
            ),
        ),
        ([fetching("old", 10, current=False), done("new")], WeightsStatus(progress_percent=100)),
    ],
)
def test_the_one_that_is_furthest_behind_is_told_of(instances: list[Instance], told: WeightsStatus | None) -> None:
    assert arriving(instances, None) == told


def test_after_a_restart_of_the_operator_the_status_stays_until_somebody_says_more() -> None:
    before = arriving([fetching("a", 40), fetching("b", 60)], None)

    assert arriving([fetching("a"), fetching("b")], before) == before
    assert arriving([fetching("c")], before) == arriving([fetching("c")], None)
    assert arriving([done("a"), done("b")], before) == WeightsStatus(progress_percent=100)


def test_what_one_look_stumbles_over_does_not_end_the_next() -> None:
    looked = 0

    def targets() -> list[Fetching]:
        nonlocal looked
        looked += 1
        raise RuntimeError("not now")

    async def scenario() -> None:
        running = asyncio.create_task(Fetches(targets, lambda key: None).run())
        while not looked:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not running.done()
        running.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def look(*answers: bytes) -> tuple[Progress | None, int]:
    """At one that fetches, once for each answer; what is kept at the end, and how often the planner was woken."""
    woken: list[ResourceKey] = []
    given = iter(answers)

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(next(given))
        writer.close()

    async def scenario() -> Progress | None:
        async with Backend(script) as container:
            fetches = Fetches(lambda: [Fetching("uid", KEY, container.address)], woken.append)
            for _ in answers:
                await fetches.look()
            return fetches.of("uid")

    return asyncio.run(asyncio.wait_for(scenario(), 20)), len(woken)


def says(percent: float, phase: str = "downloading", rate: int = 5) -> bytes:
    return plain(json.dumps({"phase": phase, "percent": percent, "bytesPerSecond": rate}).encode())


def test_a_tenth_and_a_phase_are_news_and_a_byte_is_none() -> None:
    kept, woken = look(
        says(10.0), says(11.5, rate=6), says(19.9, rate=7), says(20.1, rate=8), says(21.0, "verifying", 0)
    )

    assert kept == Progress(phase="verifying", percent=20, bytes_per_second=0)
    assert woken == 3


@pytest.mark.parametrize("nonsense", [plain(b"[]"), plain(b"no"), plain(b'{"percent": "x"}'), b""])
def test_who_talks_nonsense_has_said_nothing_and_takes_nothing_back(nonsense: bytes) -> None:
    assert look(nonsense) == (None, 0)
    assert look(says(30.0), nonsense) == (Progress(phase="downloading", percent=30, bytes_per_second=5), 1)


def test_who_fetches_no_more_is_forgotten() -> None:
    async def scenario() -> None:
        async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(says(30.0))
            writer.close()

        async with Backend(script) as container:
            now = [Fetching("uid", KEY, container.address)]
            fetches = Fetches(lambda: now, lambda key: None)
            await fetches.look()
            now.clear()
            await fetches.look()

            assert fetches.of("uid") is None

    asyncio.run(asyncio.wait_for(scenario(), 20))
