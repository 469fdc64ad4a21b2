"""The step of the engine: schedule, launch, commit.

Knows nothing of text, HTTP or processes; the same object serves the engine process and tests. `depth` is how
many steps may be under way: 1 waits for each, 2 schedules a step while the device runs the one before.
"""

from collections import deque
from typing import Protocol

from quire_engine.core.request import Request, RequestId
from quire_engine.core.scheduler import Load, Scheduler
from quire_engine.core.step import Events, StepPlan, StepResult

__all__ = ["Engine", "Launched", "Runner"]


class Launched(Protocol):
    def result(self) -> StepResult:
        """Wait for the device."""
        ...


class Runner(Protocol):
    def launch(self, plan: StepPlan) -> Launched:
        """Start a step; steps run in the order of their launch."""
        ...


class Engine:
    def __init__(self, scheduler: Scheduler, runner: Runner, depth: int = 1) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._depth = depth
        self._under_way: deque[tuple[StepPlan, Launched]] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._under_way) or self._scheduler.has_work

    @property
    def load(self) -> Load:
        return self._scheduler.load

    def add(self, request: Request) -> None:
        self._scheduler.add(request)

    def abort(self, request_id: RequestId) -> Events:
        return self._scheduler.abort(request_id)

    def step(self) -> Events:
        plan = self._scheduler.schedule()
        if not plan.is_idle:
            try:
                self._under_way.append((plan, self._runner.launch(plan)))
            except BaseException:  # whatever it is, Ctrl-C too: what was planned was not computed
                self._scheduler.take_back(plan)
                raise
        if self._under_way and (len(self._under_way) >= self._depth or plan.is_idle):
            plan, launched = self._under_way.popleft()
            return self._scheduler.commit(plan, launched.result())
        return Events()
