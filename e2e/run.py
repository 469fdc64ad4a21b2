#!/usr/bin/env python3
"""`make e2e`: everything on a real Kubernetes, stage by stage, with a table at the end.

The first stage that fails ends the run; the cluster is taken down in any case, unless --keep is given.
Exit code 0 only if every stage passed.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / name) for name in ("cluster", "kubernetes", "local", "conformance", "../tests")]

from autoscale import engines_follow_the_load  # noqa: E402  # after the path above
from checks import BEFORE_IMAGES, World  # noqa: E402
from clients import STAGES  # noqa: E402
from cluster_world import ClusterWorld  # noqa: E402
from dashboard import dashboard_in_a_browser  # noqa: E402
from failures import FAILURES  # noqa: E402
from gitops import GITOPS  # noqa: E402
from mode_hpa import hpa_scales_engines  # noqa: E402
from node_loss import a_lost_node_costs_what_was_on_it  # noqa: E402
from one_machine import LOCAL  # noqa: E402
from operators import OPERATORS, one_wrote_at_a_time  # noqa: E402
from readme import first_answer  # noqa: E402
from rights import rights_are_those_that_are_used  # noqa: E402
from rollouts import ROLLOUTS  # noqa: E402
from routing import WITH_IMAGES  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402
from soak import SOAK  # noqa: E402
from target import RELEASE, SYSTEM, Images, OwnCluster, Target, choose  # noqa: E402
from weights import STAGES as WEIGHTS  # noqa: E402


class Stages:
    """Runs stages and remembers how each one went."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, float]] = []
        self.failed = False

    def run(self, what: str, stage: Callable[[], object]) -> bool:
        """False if this stage failed, or one before it, which means that it did not run."""
        if self.failed:
            return False
        print(f"== {what}", flush=True)
        started = time.monotonic()
        try:
            stage()
            outcome = "passed"
        except (Exception, SystemExit) as error:
            if not isinstance(error, AssertionError | SystemExit):
                traceback.print_exc()
            print(f"   FAILED: {error}", flush=True)
            outcome, self.failed = "FAILED", True
        self.done.append((what, outcome, time.monotonic() - started))
        print(f"   {outcome} in {time.monotonic() - started:.1f} s", flush=True)
        return not self.failed

    def table(self) -> str:
        rows = [f"  {outcome:7} {seconds:7.1f} s  {what}" for what, outcome, seconds in self.done]
        total = sum(seconds for _, _, seconds in self.done)
        return "\n".join([*rows, f"  {'':7} {total:7.1f} s  in all"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="leave the cluster running when a stage failed")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that what was started is taken down
    stages = Stages()
    try:
        _run(stages, keep=arguments.keep)
    finally:
        print("\n" + stages.table())
    failed = sum(outcome == "FAILED" for _, outcome, _ in stages.done)
    print(f"\n{len(stages.done) - failed} passed, {failed} failed")
    return 1 if stages.failed else 0


def _run(stages: Stages, *, keep: bool) -> None:
    stages.run("make run, then the README's curl: the first answer", first_answer)
    for stage in (*STAGES, *LOCAL, engines_follow_the_load, dashboard_in_a_browser, *WEIGHTS, *SOAK, *GITOPS):
        stages.run(stage.__doc__ or "", stage)
    with tempfile.TemporaryDirectory() as folder:
        target = choose(f"e2e-{os.getpid()}", Path(folder))
        print(f"running on {target.name}", flush=True)
        if not stages.run("programs and images are built", target.build):
            return
        try:
            _run_on(target, stages)
        finally:
            if not (stages.failed and keep):
                passed, stages.failed = not stages.failed, False
                stages.run("cluster gone: no process, mount or namespace is left", lambda: _gone(target.down()))
                stages.failed = stages.failed or not passed


def _run_on(target: Target, stages: Stages) -> None:
    loaded: list[Images] = []
    if not stages.run("cluster up", lambda: loaded.append(target.up())):
        return
    world = World(target.tools, loaded[0])
    for check in BEFORE_IMAGES:
        stages.run(check.__doc__ or "", lambda check=check: check(world))
    if isinstance(target, OwnCluster):
        stages.run(hpa_scales_engines.__doc__ or "", lambda: hpa_scales_engines(world, target.layout))
    else:
        print(f"== {target.name}: mode HPA is not tried, for its metrics API would be a process here", flush=True)
    stages.run("images are loaded", target.load)
    *checks, last = WITH_IMAGES
    *checks, leaves_nothing = checks
    for check in (*checks, *OPERATORS, *ROLLOUTS, *FAILURES, leaves_nothing):
        stages.run(check.__doc__ or "", lambda check=check: check(world))
    for scenario in SCENARIOS:
        stages.run(f"conformance, {scenario.__doc__}", lambda scenario=scenario: scenario(ClusterWorld(world)))
    if isinstance(target, OwnCluster):
        lost = a_lost_node_costs_what_was_on_it
        stages.run(lost.__doc__ or "", lambda: lost(world, target.layout, target.archives[loaded[0].engine]))
    else:
        print(f"== {target.name}: no node of it is lost, for that needs one built here", flush=True)
    if (log := target.audit_log) is not None:
        for compare in (rights_are_those_that_are_used, one_wrote_at_a_time):
            stages.run(compare.__doc__ or "", lambda compare=compare: compare(world, log))
    else:
        print(
            f"== {target.name} keeps no audit log that could be read: the operators' rights and writes are not compared",
            flush=True,
        )
    stages.run(last.__doc__ or "", lambda: last(world))
    if stages.failed:
        _show_the_scene(world)


def _gone(left: list[str]) -> None:
    assert not left, "left over:\n" + "\n".join(left)


def _show_the_scene(world: World) -> None:
    """What one would look at first after a failure."""
    for command in (
        ["get", "llmd,pods", "-A", "-o", "wide"],
        ["get", "llmd", "-A", "-o", "yaml"],
        ["get", "events", "-A", "--sort-by=.lastTimestamp"],
        ["logs", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--tail=40"],
        ["logs", "-n", SYSTEM, "-l", "app.kubernetes.io/name=quire-router", "--tail=40"],
    ):
        done = world.tools.kubectl(*command, check=False)
        print(f"-- kubectl {' '.join(command)}\n{(done.stdout or done.stderr)[-6000:]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
