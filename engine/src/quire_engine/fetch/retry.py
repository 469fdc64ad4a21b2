"""When to ask again, and when to give up. Pure: the attempt, what was answered, and a chance in; seconds out."""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

__all__ = ["Policy", "pause_s", "retry_after_s"]

PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}  # the last are those of CDNs


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    attempts: int = 8  # in a row without a byte of progress
    base_s: float = 0.5
    cap_s: float = 30.0
    longest_wait_s: float = 300.0  # that a server may ask for


def pause_s(
    *, attempt: int, status: int | None, retry_after: float | None, chance: float, policy: Policy
) -> float | None:
    """Seconds until the next attempt; None: give up.

    `attempt` counts from 1, `status` is None when no answer came or it was cut; `chance` is in [0, 1) and spreads
    those that failed together over half of the wait, so that they do not come back together.
    """
    if attempt >= policy.attempts or (status is not None and status not in PASSING):
        return None
    if retry_after is not None and retry_after > policy.longest_wait_s:
        return None
    wait: float = min(policy.cap_s, policy.base_s * 2 ** (attempt - 1)) * (0.5 + 0.5 * chance)
    return wait if retry_after is None else retry_after + wait * chance


def retry_after_s(text: str | None, now: float) -> float | None:
    """Of a Retry-After header, which is seconds or a date; None for what is neither."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return None
