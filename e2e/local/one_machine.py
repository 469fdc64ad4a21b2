"""The conformance scenarios on the local backend, one stage after the other in one world."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(HERE / "conformance"), str(HERE.parent / "tests")]

from local_world import LocalWorld, local_world  # noqa: E402  # after the path above
from scenarios import SCENARIOS  # noqa: E402

__all__ = ["LOCAL"]


def conformance_on_one_machine() -> None:
    """the conformance scenarios, on one machine: `quire up` and its commands"""
    with local_world() as world:
        for scenario in SCENARIOS:
            _timed(scenario, world)


def _timed(scenario: Callable[[LocalWorld], None], world: LocalWorld) -> None:
    started = time.monotonic()
    scenario(world)
    print(f"   {time.monotonic() - started:6.1f} s  {scenario.__doc__}", flush=True)


LOCAL = (conformance_on_one_machine,)

if __name__ == "__main__":
    for stage in LOCAL:
        stage()
