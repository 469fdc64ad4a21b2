"""The step of the engine: schedule, launch, commit.

Knows nothing of text, HTTP or processes; the same object serves the engine process and tests. `depth` is how
many steps may be under way: 1 waits for each, 2 schedules a step while the device runs the one before. A request
whose grammar is being compiled waits here, while the others go on; the scheduler does not know of it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from quire_engine.core.request import Grammar, Request, RequestId
from quire_engine.core.scheduler import Load, Scheduler
from quire_engine.core.step import Events, Finish, FinishReason, StepPlan, StepResult
from quire_engine.errors import RequestRejected

__all__ = ["Engine", "Grammars", "Launched", "Runner"]

NEWS_S = 0.02  # how long a step without anything to compute waits for a grammar: requests may come meanwhile


class Launched(Protocol):
    def result(self) -> StepResult:
        """Wait for the device."""
        ...


class Runner(Protocol):
    def launch(self, plan: StepPlan) -> Launched:
        """Start a step; steps run in the order of their launch."""
        ...


class Grammars(Protocol):
    def hold(self, grammar: Grammar) -> None:
        """Begin to compile it, and keep it until it is released as often as held."""
        ...

    def release(self, grammar: Grammar) -> None: ...

    def ready(self, grammar: Grammar) -> bool:
        """Is it compiled? RequestRejected if it cannot be."""
        ...

    def wait(self, seconds: float) -> None:
        """For one to be compiled or refused."""
        ...


class Engine:
    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        depth: int = 1,
        grammars: Grammars | None = None,
        least_seconds: Callable[[StepPlan], float] | None = None,
        *,
        invariant: bool = True,
    ) -> None:
        """`least_seconds` says what a step would take at the device's limits, where these are known; `invariant` whether
        the kernels can give a row the same bits in any batch."""
        self._invariant = invariant
        self._scheduler = scheduler
        self._runner = runner
        self._depth = depth
        self._grammars = grammars
        self._held: dict[RequestId, Grammar] = {}
        self._preparing: dict[RequestId, Request] = {}  # their grammars are not compiled yet
        self._under_way: deque[tuple[StepPlan, Launched, float]] = deque()
        self._least_seconds = least_seconds
        self.last_num_tokens = 0  # of the step that was launched last
        self.last_least_s = (
            0.0  # that the step waited for last would take at the device's limits; 0: none, or nobody knows
        )

    @property
    def has_work(self) -> bool:
        return bool(self._under_way or self._preparing) or self._scheduler.has_work

    @property
    def load(self) -> Load:
        load = self._scheduler.load
        return replace(load, waiting=load.waiting + len(self._preparing)) if self._preparing else load

    def add(self, request: Request) -> None:
        if request.params.batch_invariant and not self._invariant:
            raise RequestRejected(
                "batch_invariant cannot be had of plain torch, which computes here", "batch_invariant"
            )
        grammar = request.params.grammar
        if grammar is None:
            self._scheduler.add(request)
            return
        if self._grammars is None:
            raise RequestRejected(f"{grammar.param} needs a tokenizer, and none was loaded", grammar.param)
        self._grammars.hold(grammar)
        self._held[request.id] = grammar
        self._preparing[request.id] = request

    def abort(self, request_id: RequestId) -> Events:
        if self._preparing.pop(request_id, None) is None:
            return self._released(self._scheduler.abort(request_id))
        finish = Finish(FinishReason.ABORT)
        return self._released(Events(ids=[request_id], tokens=[-1], finished={0: finish}))

    def step(self) -> Events:
        events = self._admit_prepared() if self._preparing else Events()
        events.extend(self._compute())
        return self._released(events)

    def _compute(self) -> Events:
        try:
            plan = self._scheduler.schedule()
        except BaseException:  # Ctrl-C comes anywhere
            self._scheduler.doubt()
            raise
        self.last_num_tokens = plan.num_tokens
        self.last_least_s = 0.0
        if not plan.is_idle:
            try:
                least_s = self._least_seconds(plan) if self._least_seconds else 0.0
                self._under_way.append((plan, self._runner.launch(plan), least_s))
            except BaseException:  # whatever it is, Ctrl-C too: what was planned was not computed
                self._scheduler.take_back(plan)
                raise
        if self._under_way and (len(self._under_way) >= self._depth or plan.is_idle):
            plan, launched, self.last_least_s = self._under_way.popleft()
            return self._scheduler.commit(plan, launched.result())
        if self._preparing and self._grammars is not None and not self._under_way:
            self._grammars.wait(NEWS_S)
        return Events()

    def _admit_prepared(self) -> Events:
        assert self._grammars is not None  # else none would wait
        events = Events()
        for request in list(self._preparing.values()):
            try:
                if not self._grammars.ready(self._held[request.id]):
                    continue
                self._scheduler.add(request)
            except RequestRejected as refusal:
                events.refused[request.id] = refusal
            del self._preparing[request.id]
        return events

    def _released(self, events: Events) -> Events:
        """The same; the grammars of requests that have ended are not needed any more."""
        if self._held and self._grammars is not None:
            for request_id in (*(events.ids[i] for i in events.finished), *events.refused):
                if grammar := self._held.pop(request_id, None):
                    self._grammars.release(grammar)
        return events
