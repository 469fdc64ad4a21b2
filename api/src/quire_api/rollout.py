"""`spec.rollout`: how engines of a new revision take the place of the old ones, and what the status remembers of it.

A revision is one pod template. It is *good* once it has served alone; the last good one is what a roll-out returns to.
"""

from typing import ClassVar, Literal

from pydantic import Field

from quire_api.base import Duration, Rule, Strict, seconds

__all__ = ["FailedRevision", "RevisionStatus", "Rollout"]


class Rollout(Strict):
    """How an edit reaches the engines."""

    strategy: Literal["Auto", "SurgeFirst", "TerminateFirst"] = Field(
        "Auto",
        description="`SurgeFirst` starts a new engine before an old one goes, which needs room for one more; `TerminateFirst` ends an old one first, "
        "which with one replica interrupts. `Auto` surges, and ends an old one first when the new pod found no place for 30 s. One engine alone on several nodes ends first, whatever is said here. Default: Auto.",
        examples=["TerminateFirst"],
    )
    progress_deadline: Duration = Field(
        "45m",
        description="How long a new revision may go without one engine more that serves; time spent on fetching weights does not count. "
        "Longer than `health.startupTimeout`. A number and s, m or h; at most 48h. Default: 45m.",
        examples=["20m"],
    )
    auto_rollback: bool = Field(
        True,
        description="Whether a revision that misses the deadline gives way to the last one that served. It is not tried again until the spec is "
        "edited; `replicas` alone is no edit. Default: true.",
        examples=[False],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.progressDeadline) <= duration('48h')",
            message="progressDeadline must be at most 48h: what has not served in two days is not going to",
            holds=lambda r: seconds(r.progress_deadline) <= 172_800,
        ),
    )


class FailedRevision(Strict):
    """A revision that missed its deadline."""

    revision: str = Field(max_length=64, description="Which one.")
    edit: str = Field(max_length=64, description="Digest of the spec, `replicas` apart; another one tries again.")
    reason: str = Field(max_length=64, description="Why, in one word; docs/reference/conditions.md lists all of them.")
    message: str = Field("", max_length=1024, description="Why, in a sentence.")


class RevisionStatus(Strict):
    """Which pod template the engines come from; ControllerRevisions hold the templates."""

    current: str = Field("", max_length=64, description="Revision that is wanted now; the label of its pods.")
    last_good: str = Field(
        "", max_length=64, description="Last revision that served alone; a failed one gives way to it."
    )
    since: str = Field(
        "",
        max_length=40,
        description="When the roll-out of `current` began, or had one engine more that serves; empty: there is none.",
    )
    ready: int = Field(0, ge=0, description="The most engines of `current` that served during its roll-out.")
    room: int = Field(0, ge=0, description="The most engines, of whatever revision, that served at once during it.")
    failed: FailedRevision | None = Field(None, description="Revision that the spec asks for and that was rolled back.")
