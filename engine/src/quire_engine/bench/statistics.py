"""Outcomes of requests -> what is reported: rates, percentiles, goodput. Times come in seconds and leave in milliseconds.

Only requests that were answered to their end count towards tokens and times; the others are counted, by their reason.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["METRICS", "Failure", "Outcome", "Spread", "Summary", "percentile", "summarise"]

METRICS = {  # as vLLM names them
    "ttft": "time to first token",
    "tpot": "time per token after the first",
    "itl": "time between tokens",
    "e2el": "time to the last token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A request that was answered to its end."""

    ttft_s: float
    e2e_s: float
    gaps_s: Sequence[float]  # between events that brought text
    input_tokens: int
    output_tokens: int

    @property
    def tpot_s(self) -> float | None:
        """None: there was no token after the first."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


@dataclass(frozen=True, slots=True)
class Failure:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    mean: float
    median: float
    percentiles: dict[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    completed: int
    failed: int
    reasons: list[tuple[str, int]]  # of failures, the most frequent first
    duration_s: float
    input_tokens: int
    output_tokens: int
    good: int | None  # requests that met every goal; None: there are none to meet
    spreads_ms: dict[str, Spread]  # by metric; none where nothing was measured

    @property
    def requests_per_s(self) -> float:
        return self._rate(self.completed)

    @property
    def output_tokens_per_s(self) -> float:
        return self._rate(self.output_tokens)

    @property
    def total_tokens_per_s(self) -> float:
        return self._rate(self.input_tokens + self.output_tokens)

    @property
    def good_per_s(self) -> float | None:
        return None if self.good is None else self._rate(self.good)

    def _rate(self, number: int) -> float:
        return number / self.duration_s if self.duration_s > 0 else 0.0


def summarise(
    outcomes: Sequence[Outcome | Failure],
    duration_s: float,
    percents: Sequence[float] = (99.0,),
    goals_ms: Mapping[str, float] | None = None,
) -> Summary:
    answered = [each for each in outcomes if isinstance(each, Outcome)]
    reasons = Counter(each.reason for each in outcomes if isinstance(each, Failure))
    values: dict[str, list[float]] = {
        "ttft": [each.ttft_s for each in answered],
        "tpot": [tpot for each in answered if (tpot := each.tpot_s) is not None],
        "itl": [gap for each in answered for gap in each.gaps_s],
        "e2el": [each.e2e_s for each in answered],
    }
    return Summary(
        completed=len(answered),
        failed=reasons.total(),
        reasons=reasons.most_common(),
        duration_s=duration_s,
        input_tokens=sum(each.input_tokens for each in answered),
        output_tokens=sum(each.output_tokens for each in answered),
        good=sum(_is_good(each, goals_ms) for each in answered) if goals_ms else None,
        spreads_ms={name: _spread(times, percents) for name, times in values.items() if times},
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in rising order; between two of them, in proportion."""
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    low, high = ordered[below], ordered[above]
    return low + (high - low) * (place - below)


def _spread(times_s: list[float], percents: Sequence[float]) -> Spread:
    ordered = sorted(time * 1e3 for time in times_s)
    return Spread(
        mean=math.fsum(ordered) / len(ordered),
        median=percentile(ordered, 50),
        percentiles={percent: percentile(ordered, percent) for percent in percents},
    )


def _is_good(outcome: Outcome, goals_ms: Mapping[str, float]) -> bool:
    """A goal for what a request does not have, as the time per token of one token, is met."""
    measured = {"ttft": outcome.ttft_s, "tpot": outcome.tpot_s, "e2el": outcome.e2e_s}
    return all((time := measured[name]) is None or time * 1e3 <= goal for name, goal in goals_ms.items())
