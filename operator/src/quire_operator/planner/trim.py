"""How much of its capacity an engine is given, so that first tokens come in time. Pure.

    slower than the target     less, a fifth for each stable window: engines share what comes sooner
    well within it             more again, four times as slowly, up to all of it

Rule: it only trims what was learned of engines, to no less than half. A target that no engine keeps even when it has nothing
else to do asks for twice as many, and not for all there may be. While engines load nothing changes: they are the answer already.
"""

from quire_operator.planner.demand import Look

__all__ = ["slowest", "trimmed"]

LEAST = 0.5
STEP = 0.8  # for a stable window
BACK = 4  # times as slowly
WELL_WITHIN = 0.7  # of the target


def slowest(look: Look) -> float | None:
    """Seconds to the first token, the 95th percentile of the last minute, in the engine where they are most; None: no engine has any."""
    return max((e.ttft_p95_s for e in look.engines if e.ttft_p95_s is not None), default=None)


def trimmed(trim: float, look: Look, target_s: float | None, windows: float) -> float:
    """`trim` after a look; `windows` is the time since the last one, in stable windows."""
    if target_s is None:
        return 1.0
    seen = slowest(look)
    if seen is None or look.ready < look.replicas:
        return trim
    if seen > target_s:
        return max(LEAST, trim * float(STEP**windows))
    return min(1.0, trim / float(STEP ** (windows / BACK))) if seen <= WELL_WITHIN * target_s else trim
