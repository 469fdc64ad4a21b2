"""The policies that are compared: ours, and the HorizontalPodAutoscaler's algorithm on a metric of pods.

HPA, as Kubernetes documents it: every 15 s, ceil(pods x average / target) within a tolerance of 10 %; pods that do not report yet
count as idle when more are wanted; up by four pods or double a period, down to the most that was wanted in the last five minutes.
"""

from collections.abc import Callable
from math import ceil

from quire_operator.planner.autoscale import Policy, decide
from quire_operator.planner.demand import EngineLoad, Look, Memory
from quire_operator.simulate.fleet import Scaler

__all__ = ["builtin", "hpa", "kv_use", "queue_length"]

SYNC_S, TOLERANCE, STABILIZE_S = 15.0, 0.1, 300.0

Metric = Callable[[EngineLoad], float]


def queue_length(engine: EngineLoad) -> float:
    return float(engine.waiting)


def kv_use(engine: EngineLoad) -> float:
    return engine.kv_usage


def builtin(policy: Policy) -> Scaler:
    memory = Memory()

    def scale(look: Look, now: float) -> tuple[int, str]:
        nonlocal memory
        decision = decide(look, policy, memory, now)
        memory = decision.memory
        return decision.desired, decision.reason

    return scale


def hpa(metric: Metric, target: float, least: int, most: int) -> Scaler:
    wanted: list[tuple[float, int]] = []
    synced = -SYNC_S

    def scale(look: Look, now: float) -> tuple[int, str]:
        nonlocal synced, wanted
        if now - synced < SYNC_S:
            return look.replicas, ""
        synced = now
        count = min(max(_recommended(look, metric, target), least), most)
        wanted = [(at, n) for at, n in wanted if at > now - STABILIZE_S] + [(now, count)]
        if count > look.replicas:
            return min(count, max(look.replicas + 4, 2 * look.replicas)), "up"
        return min(look.replicas, max(n for _, n in wanted)), "down"

    return scale


def _recommended(look: Look, metric: Metric, target: float) -> int:
    if not look.engines:
        return look.replicas
    total = sum(metric(engine) for engine in look.engines)
    ratio = total / len(look.engines) / target
    silent = look.replicas - len(look.engines)
    if not silent:
        return look.replicas if abs(ratio - 1) <= TOLERANCE else ceil(ratio * look.replicas)
    ratio_all = (total + (silent * target if ratio < 1 else 0.0)) / look.replicas / target
    if abs(ratio_all - 1) <= TOLERANCE or (ratio < 1) != (ratio_all < 1):
        return look.replicas
    return ceil(ratio_all * look.replicas)
