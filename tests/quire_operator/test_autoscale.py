"""The autoscaler's decision, for whatever engines say; and what becomes of it in a plan and a status."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes.resources import good
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_api import LLMDeployment
from quire_api.reasons import SCALE_REASONS, ConditionType, Reason, ScaleReason
from quire_api.status import AutoscalingStatus, DeploymentStatus
from quire_operator.planner.autoscale import Policy, ScaleDecision, decide
from quire_operator.planner.demand import EngineLoad, Look, Memory, capacity, carries
from quire_operator.planner.explain import explain
from quire_operator.planner.observed import Instance, Key, ObjectState, Observed, Scaler, Workload
from quire_operator.planner.plan import Plan, Scale, Weigh, plan
from quire_operator.planner.scaling import policy_of, recall, replicas, tell
from quire_operator.render import kubernetes
from quire_operator.settings import OperatorSettings
from quire_operator.simulate.compare import compare, reversals
from quire_operator.simulate.fleet import simulate
from quire_operator.simulate.loads import KINDS, Arrival, EngineModel, Load, generate
from quire_operator.simulate.policies import builtin

POLICY = Policy(least=1, most=20)
EVERY_S = 5.0
QUICK = settings(max_examples=40, deadline=None)


def engine(number: int = 0, **said: Any) -> EngineLoad:
    idle = {"running": 0, "waiting": 0, "kv_usage": 0.0, "preemptions": 0, "finished": 0}
    return EngineLoad(**{"name": f"e{number}", "kv_tokens": 10_000, "max_num_seqs": 10, **idle, **said})  # type: ignore[arg-type]


def look(*engines: EngineLoad, replicas: int | None = None, held: int = 0, **more: Any) -> Look:
    count = len(engines)
    return Look(
        **{
            "replicas": count if replicas is None else replicas,
            "ready": count,
            "engines": engines,
            "held": held,
            **more,
        }
    )


def after(policy: Policy, *looks: Look, memory: Memory | None = None) -> ScaleDecision:
    """The decision at the last of these looks, five seconds apart."""
    decision = None
    for number, one in enumerate(looks):
        decision = decide(one, policy, decision.memory if decision else memory or Memory(), 1000 + EVERY_S * number)
    assert decision is not None
    return decision


loads = st.builds(
    engine,
    number=st.integers(0, 5),
    running=st.integers(0, 10),
    waiting=st.integers(0, 50),
    kv_usage=st.floats(0, 1),
    preemptions=st.integers(0, 3),
    finished=st.integers(0, 1000),
)
looks = st.builds(
    lambda engines, loading, silent, held: Look(
        replicas=len(engines) + loading + silent, ready=len(engines) + silent, engines=tuple(engines), held=held
    ),
    st.lists(loads, max_size=5, unique_by=lambda e: e.name),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 50),
)


@QUICK
@given(st.lists(looks, min_size=1, max_size=60), st.integers(1, 4), st.integers(0, 6))
def test_whatever_is_seen_the_bounds_hold_and_at_most_half_go(seen: list[Look], least: int, span: int) -> None:
    policy = Policy(least=least, most=least + span, down_delay_s=30, cold_start_s=5)
    memory = Memory()
    for number, one in enumerate(seen):
        decision = decide(one, policy, memory, EVERY_S * number)
        memory = decision.memory
        if one.replicas:
            assert policy.least <= decision.desired <= policy.most
            assert decision.desired >= min(policy.most, one.replicas // 2)
        assert decision.reason in SCALE_REASONS


@QUICK
@given(st.lists(looks, min_size=1, max_size=20), st.integers(1, 100))
def test_more_that_waits_never_asks_for_fewer(seen: list[Look], more: int) -> None:
    *before, last = seen
    busier = replace(last, held=last.held + more)

    assert after(POLICY, *before, busier).desired >= after(POLICY, *before, last).desired


@QUICK
@given(st.lists(looks, min_size=1, max_size=20))
def test_the_same_input_gives_the_same_decision(seen: list[Look]) -> None:
    assert after(POLICY, *seen) == after(POLICY, *seen)


@QUICK
@given(st.integers(1, 6), st.integers(0, 10), st.integers(0, 60))
def test_what_loads_is_supply(loading: int, running: int, waiting: int) -> None:
    """However many load already, no more are wanted than with one less: else each look would ask for another."""
    busy = engine(running=running, waiting=waiting, kv_usage=running / 10)
    alone = after(POLICY, *[look(busy)] * 20).desired

    wanted = after(POLICY, *[look(busy, replicas=1 + loading)] * 20).desired

    assert wanted <= max(alone, 1 + loading)


def test_no_metrics_hold_the_number() -> None:
    blind = Look(replicas=4, ready=4, engines=())

    decision = after(POLICY, *[look(*(engine(n) for n in range(4)))] * 100, blind)

    assert (decision.desired, decision.reason) == (4, ScaleReason.METRICS_UNAVAILABLE)


def test_one_silent_engine_may_be_full_so_none_goes() -> None:
    idle = [look(*(engine(n) for n in range(3)), replicas=4, ready=4)] * 100

    decision = after(POLICY, *idle)

    assert (decision.desired, decision.reason) == (4, ScaleReason.METRICS_UNAVAILABLE)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"running": 1, "waiting": 5, "kv_usage": 0.1, "max_num_seqs": 100}, ScaleReason.WAITING),
        ({"running": 4, "kv_usage": 0.8}, ScaleReason.KV_CACHE),
    ],
)
def test_saturated_means_one_more_than_serve(said: dict[str, Any], reason: ScaleReason) -> None:
    decision = after(replace(POLICY, stable_s=5, panic_s=5), look(engine(**said)))

    assert (decision.desired, decision.reason) == (2, reason)


def test_preemptions_ask_for_one_more() -> None:
    before, now = look(engine(running=2, kv_usage=0.3)), look(engine(running=2, kv_usage=0.3, preemptions=1))

    decision = after(POLICY, before, now)

    assert (decision.desired, decision.reason) == (2, ScaleReason.PREEMPTIONS)


def test_a_backlog_that_shrinks_asks_for_nothing() -> None:
    waits = [look(engine(running=10, waiting=n, kv_usage=0.5)) for n in (40, 30, 20, 10)]

    assert after(POLICY, *waits).reason is not ScaleReason.WAITING


def test_idle_engines_go_by_halves_and_late() -> None:
    idle = look(*(engine(n) for n in range(8)))
    busy = look(*(engine(n, running=10, kv_usage=0.5, finished=9) for n in range(8)))
    policy = replace(POLICY, down_delay_s=100, cold_start_s=10)

    early, late = after(policy, busy, *[idle] * 15), after(policy, busy, *[idle] * 60)

    assert early.desired == 8
    assert (late.desired, late.reason) == (4, ScaleReason.LESS_DEMAND)


def test_those_that_stay_hold_the_kv_cache_at_its_fullest() -> None:
    """Few requests with long prompts: few places, and a full cache."""
    policy = replace(POLICY, down_delay_s=50, cold_start_s=10, kv_usage=0.9)
    long = look(*(engine(n, running=1, kv_usage=0.6) for n in range(4)))

    assert after(policy, *[long] * 40).desired == 3


def test_after_a_restart_nothing_goes_before_it_has_looked_back() -> None:
    status = DeploymentStatus(autoscaling=AutoscalingStatus(desired=4, capacity_tokens=5000, cold_start="20s"))

    memory = recall(status)

    assert (capacity(memory), memory.cold_start_s) == (5000, 20)
    assert after(POLICY, look(*(engine(n) for n in range(4))), memory=memory).desired == 4


def test_what_is_told_while_first_tokens_are_late_is_not_trimmed_again_after_a_restart() -> None:
    modes = {"spec__autoscaling": {"mode": "Builtin", "min": 1, "max": 9}}
    busy = [look(engine(running=5, kv_usage=0.5, ttft_p95_s=9.0))] * 60
    late = after(replace(POLICY, ttft_p95_s=1.0), *busy)

    told = tell(LLMDeployment.parse(good(**modes)), None, late, late.desired, "")
    known = recall(DeploymentStatus(autoscaling=told))

    assert late.memory.trim == 0.5
    assert capacity(late.memory) == pytest.approx(5_000)
    assert capacity(known) == pytest.approx(carries(late.memory))


def test_idle_long_enough_is_zero_and_a_held_request_wakes_one() -> None:
    policy = replace(POLICY, least=0, idle_s=60)
    idle = [look(engine())] * 13

    asleep = after(policy, *idle)
    woken = decide(look(held=1), policy, asleep.memory, 2000)

    assert (asleep.desired, asleep.reason) == (0, ScaleReason.IDLE)
    assert after(policy, *idle[:-2]).desired == 1
    assert (woken.desired, woken.reason) == (1, ScaleReason.WOKEN)
    assert decide(look(), policy, asleep.memory, 2000).desired == 0


def test_the_time_that_an_engine_loads_is_not_idle() -> None:
    """Else one that loads for longer than idleAfter would go the moment that it is ready."""
    policy = replace(POLICY, least=0, idle_s=60)
    loading = [look(replicas=1)] * 50

    assert after(policy, *loading, *[look(engine())] * 11).desired == 1
    assert after(policy, *loading, *[look(engine())] * 12).desired == 0


def test_without_a_router_that_holds_nothing_goes_to_zero() -> None:
    policy = replace(POLICY, least=0, idle_s=60)

    assert after(policy, *[look(engine(), holds=False)] * 100).desired == 1
    assert after(policy, look(holds=False)).desired == 1


def test_a_cold_start_is_measured() -> None:
    loading = [look(engine(), replicas=2)] * 8

    decision = after(POLICY, look(engine()), *loading, look(engine(), engine(1)))

    assert decision.memory.cold_start_s == 40


def test_an_engine_that_was_not_ready_for_a_moment_is_neither_a_burst_nor_a_cold_start() -> None:
    """All that it ever finished did not come since it was seen last."""

    def busy(time: int, *numbers: int) -> Look:
        done = {"finished": 100_000 + 5 * time, "preemptions": 7}
        return look(*(engine(n, running=8, kv_usage=0.5, **done) for n in numbers), replicas=4)

    steady = [busy(time, 0, 1, 2, 3) for time in range(40)]
    blip = [*steady[:20], busy(20, 1, 2, 3), *steady[21:]]

    for seen in (blip[:22], blip):
        decision = after(POLICY, *seen)
        assert decision.desired <= after(POLICY, *steady[: len(seen)]).desired + 1
        assert decision.reason not in (ScaleReason.PANIC, ScaleReason.PREEMPTIONS)
        assert decision.memory.cold_start_s is None


def test_engines_go_though_one_more_finds_no_place() -> None:
    policy = replace(POLICY, down_delay_s=50, cold_start_s=10)
    busy = [
        look(*(engine(n, running=10, kv_usage=0.9, finished=9 * t) for n in range(4)), replicas=5) for t in range(9)
    ]
    idle = [look(*(engine(n) for n in range(4)), replicas=5)] * 60

    decision = after(policy, *busy, *idle)

    assert (decision.desired, decision.reason) == (3, ScaleReason.LESS_DEMAND)


def test_engines_that_nobody_ever_asked_go_too() -> None:
    policy = replace(POLICY, down_delay_s=50, cold_start_s=10)
    idle = look(*(engine(n) for n in range(8)))

    assert after(policy, *[idle] * 5).desired == 8
    assert after(policy, *[idle] * 20).desired == 4


# first tokens


FULL = {"running": 10, "kv_usage": 0.5, "ttft_p95_s": 3.0}


def late(seconds: float, looks: int = 60) -> list[Look]:
    """A busy engine that answers so late; 5,000 tokens of 10,000 are in flight."""
    return [look(engine(**{**FULL, "ttft_p95_s": seconds})) for _ in range(looks)]


def test_late_first_tokens_trim_what_an_engine_is_given_down_to_half() -> None:
    policy = replace(POLICY, ttft_p95_s=1.0)

    trims = [after(policy, *late(3.0, count)).memory.trim for count in (1, 13, 60, 600)]

    assert trims[0] == 1.0
    assert trims[1] == pytest.approx(0.8)
    assert trims[2:] == [0.5 if trim <= 0.5 else trim for trim in trims[2:]]
    assert trims[3] == 0.5
    assert after(policy, *late(3.0)).reason is ScaleReason.TTFT
    assert after(POLICY, *late(3.0)).memory.trim == 1.0


def test_first_tokens_well_in_time_give_it_back_and_those_just_in_time_do_not() -> None:
    policy = replace(POLICY, ttft_p95_s=1.0)

    trims = [after(policy, *late(3.0), *then).memory.trim for then in ([], late(0.9), late(0.1), late(0.1, 300))]

    assert trims[0] == trims[1] < trims[2] < trims[3] == 1.0


def test_late_first_tokens_ask_for_no_more_while_engines_load() -> None:
    policy = replace(POLICY, ttft_p95_s=1.0)
    loading = [replace(each, replicas=2) for each in late(3.0)]

    assert after(policy, *loading).memory.trim == 1.0


def test_what_was_seen_of_first_tokens_is_in_the_history() -> None:
    decision = after(replace(POLICY, ttft_p95_s=1.0), *late(3.0))

    told = planned(seen(1, decision, DeploymentStatus(autoscaling=AutoscalingStatus(desired=1)))).status.autoscaling

    assert told is not None
    assert told.history[0].reason is ScaleReason.TTFT
    assert told.history[0].inputs.ttft_p95 == "3.00s"


# in simulated time


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.84, 1.3, 2.5])
def test_a_constant_load_is_settled_once(busy: float) -> None:
    """`busy` engines' worth, evenly: the number is found, and left."""
    model = EngineModel(cold_start_s=60)
    pause = model.service_s(500, 250, 16) / 16 / busy
    load = Load(
        kind="constant", seconds=3600, engine=model, first=1,
        arrivals=tuple(Arrival(n * pause, 500, 250) for n in range(int(3600 / pause))),
    )  # fmt: skip

    outcome = simulate(load, builtin(Policy(least=1, most=16)))

    late = {step.replicas for step in outcome.steps if step.at > 1500}
    assert len(late) == 1
    assert late.pop() in (int(busy) + 1, int(busy) + 2)


def test_first_tokens_that_more_engines_make_faster_bring_more_engines_once() -> None:
    """0.11 s in a full engine, 0.09 in a half full one."""
    model = EngineModel(cold_start_s=60)
    pause = model.service_s(500, 250, 16) / 16 / 2.5
    load = Load(
        kind="constant", seconds=3600, engine=model, first=1,
        arrivals=tuple(Arrival(n * pause, 500, 250) for n in range(int(3600 / pause))),
    )  # fmt: skip

    outcomes = [simulate(load, builtin(Policy(least=1, most=16, ttft_p95_s=target))) for target in (None, 0.09)]

    without, kept = ({step.replicas for step in outcome.steps if step.at > 1800} for outcome in outcomes)
    assert len(without) == len(kept) == 1
    assert without < kept or without.pop() < kept.pop()


@pytest.mark.parametrize("seed", range(len(KINDS)))
def test_beside_hpa_on_one_load_of_each_kind(seed: int) -> None:
    """A sample of what benchmarks/autoscale.py does with 200: no pacing, and no queue target does as well with as few engines."""
    result = compare(generate(seed, 1200.0), kv_targets=())

    assert result.reversals <= 2
    assert result.wins(result.queue)


def test_reversals_are_counted_within_a_window() -> None:
    load = generate(0, 300.0)
    numbers = iter([2, 3, 2, 3, 3, 3] + [3] * 100)

    outcome = simulate(load, lambda look, now: (next(numbers), ""), every_s=20.0)

    assert reversals(outcome.steps, 60.0) == 2


# in plans

NOW = datetime(2026, 1, 1, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
SPEC = {"mode": "Builtin", "min": 1, "max": 5}


def planned(observed: Observed, suspend: bool = False, **autoscaling: Any) -> Plan:
    what = good(
        metadata__uid="u",
        metadata__generation=1,
        spec__replicas=4,
        spec__suspend=suspend,
        spec__autoscaling={**SPEC, **autoscaling},
    )
    return plan(what, observed, lambda d: kubernetes.render(d, OperatorSettings()), NOW)


def seen(replicas: int, decision: ScaleDecision | None, status: DeploymentStatus | None = None) -> Observed:
    return Observed(
        status=status or DeploymentStatus(),
        objects={Key("Deployment", "good"): ObjectState(uid="d", owner_uid="u", applied=None, replicas=replicas)},
        workload=Workload(current=True, replicas=replicas, updated=replicas, ready=replicas, updated_ready=replicas),
        instances=tuple(Instance(name=f"e{n}", ready=True) for n in range(replicas)),
        decision=decision,
    )


def scales(decided: Plan) -> list[int]:
    return [action.replicas for action in decided.actions if isinstance(action, Scale)]


def test_the_decision_is_what_the_deployment_is_scaled_to() -> None:
    decision = replace(after(POLICY, look(engine())), desired=3, reason=ScaleReason.DEMAND)
    before = DeploymentStatus(autoscaling=AutoscalingStatus(desired=2))

    decided = planned(seen(2, decision, before))

    assert scales(decided) == [3]
    assert decided.status.autoscaling is not None
    event = decided.status.autoscaling.history[0]
    assert (event.before, event.desired, event.reason) == (2, 3, ScaleReason.DEMAND)
    active = [c for c in decided.status.conditions if c.type == "AutoscalingActive"]
    assert active[0].reason == Reason.FOLLOWING_DEMAND
    assert "spec.replicas is ignored" in active[0].message


def test_before_the_first_look_the_number_stays() -> None:
    assert scales(planned(seen(2, None))) == []
    assert scales(planned(seen(2, None, DeploymentStatus(autoscaling=AutoscalingStatus(desired=3))))) == [3]


def test_bounds_of_now_hold_for_a_decision_of_before() -> None:
    decision = replace(after(POLICY, look(engine())), desired=9)

    assert scales(planned(seen(2, decision))) == [5]


def test_pods_are_weighed_by_their_work_before_some_go() -> None:
    decision = after(POLICY, look(engine(0, running=3), engine(1, running=7, waiting=2)))

    decided = planned(seen(2, replace(decision, desired=1)))

    weighed = {action.key.name: action.cost for action in decided.actions if isinstance(action, Weigh)}
    assert weighed == {"e0": 3, "e1": 9}
    assert isinstance(decided.actions[-1], Scale)


def test_other_modes_copy_spec_replicas() -> None:
    decision = replace(after(POLICY, look(engine())), desired=3)

    manual = planned(seen(2, decision), mode="Manual")
    external = planned(seen(2, decision), mode="External")

    assert scales(manual) == scales(external) == [4]
    assert manual.status.autoscaling is None
    assert [c.reason for c in external.status.conditions if c.type == "AutoscalingActive"] == [Reason.SCALED_BY_OTHERS]


UNREAD = "the HPA was unable to compute the replica count: no metrics returned from custom metrics API"


@pytest.mark.parametrize(
    ("scaler", "suspend", "said"),
    [
        (None, False, ("True", Reason.SCALED_BY_HPA)),
        (Scaler(), False, ("True", Reason.SCALED_BY_HPA)),
        (Scaler(fault=UNREAD), False, ("False", Reason.HPA_NOT_ACTIVE)),
        (Scaler(fault=UNREAD), True, ("True", Reason.SCALED_BY_HPA)),
    ],
)
def test_in_mode_hpa_spec_replicas_are_copied_and_what_the_hpa_lacks_is_said(
    scaler: Scaler | None, suspend: bool, said: tuple[str, Reason]
) -> None:
    observed = replace(seen(2, None), scaler=scaler)

    decided = planned(observed, mode="HPA", suspend=suspend)

    active = decided.status.condition(ConditionType.AUTOSCALING_ACTIVE)
    assert active is not None
    assert (active.status, active.reason) == said
    assert (UNREAD in active.message and "prometheus-adapter" in active.message) == (said[0] == "False")
    assert scales(decided) == ([0] if suspend else [4])
    assert decided.status.autoscaling is None


@pytest.mark.parametrize(("said", "wanted"), [(1, 3), (4, 4), (9, 6), (0, 0)])
def test_in_mode_hpa_the_bounds_hold_before_the_hpa_has_looked_and_zero_stays_zero(said: int, wanted: int) -> None:
    bounds = {"mode": "HPA", "min": 3, "max": 6}
    deployment = LLMDeployment.parse(good(spec__replicas=said, spec__autoscaling=bounds))

    assert replicas(deployment, None, None, 5) == wanted


def test_the_history_keeps_five_and_is_explained() -> None:
    status, decision = DeploymentStatus(), after(POLICY, look(engine()))
    for number in range(9):
        wanted = replace(decision, desired=1 + number % 2, reason=ScaleReason.DEMAND)
        status = planned(seen(2, wanted, status)).status

    lines = explain(status)

    assert status.autoscaling is not None
    assert len(status.autoscaling.history) == 5
    assert sum("DemandAboveCapacity" in line for line in lines) == 5
    assert SCALE_REASONS[ScaleReason.DEMAND] in lines[-2]


def test_the_spec_is_the_policy() -> None:
    resource = good(
        spec__autoscaling={**SPEC, "behavior": {"stableWindow": "30s"}, "targets": {"waitingPerReplica": 9}}
    )

    policy = policy_of(LLMDeployment.parse(resource))

    assert (policy.least, policy.most, policy.stable_s, policy.waiting_per_replica) == (1, 5, 30, 9)
    assert policy.idle_s is None
