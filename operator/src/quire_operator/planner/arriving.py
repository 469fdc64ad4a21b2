"""`status.weights`: how far the weights are, as the containers say that fetch them. Pure.

Rule: only what was said. Who fetches and has not answered has no percentage, and nobody's is made up of another one's: the
least that was said is of those that said it, and how many have not stands beside it. What was written before is kept while nobody
has said anything, as after the operator was started anew.
"""

from collections.abc import Iterable

from quire_api.status import WeightsStatus
from quire_operator.planner.observed import Instance

__all__ = ["arriving"]


def arriving(instances: Iterable[Instance], before: WeightsStatus | None) -> WeightsStatus | None:
    """Of the wanted revision; None while no engine fetches or has fetched."""
    current = [instance for instance in instances if instance.current]
    fetching = [instance for instance in current if instance.fetching]
    if not fetching:
        return WeightsStatus(progress_percent=100) if any(i.fetched_at for i in current) else None
    told = [(i.progress.percent, i.name, i.progress) for i in fetching if i.progress is not None]
    if not told:
        if before is not None and any(before.message.startswith(f"{i.name}: ") for i in fetching):
            return before
        return WeightsStatus(message=f"{fetching[0].name} fetches, and has not said yet how far it is")
    percent, name, progress = min(told, key=lambda each: each[:2])
    more = f"; {len(fetching) - 1} more fetch" if len(fetching) > 1 else ""
    silent = len(fetching) - len(told)
    more += f", {silent} of them {'has' if silent == 1 else 'have'} not said how far" if silent else ""
    return WeightsStatus(
        progress_percent=percent,
        bytes_per_second=progress.bytes_per_second,
        message=f"{name}: {progress.phase}{more}",
    )
