"""`spec.autoscaling`: who decides how many engines there are, and by what.

One writer always: in Manual, HPA and External `spec.replicas` is copied to the engines, whoever writes it; in Builtin the
operator decides, and `spec.replicas` is left alone.
"""

from typing import ClassVar, Literal

from pydantic import Field

from quire_api.base import Delay, Duration, Rule, Strict, seconds

__all__ = ["Autoscaling", "Behavior", "ScaleToZero", "Targets", "Wake"]


class Targets(Strict):
    """What counts as too full: then there is to be at least one engine more than serve."""

    kv_cache_utilization: float = Field(
        0.75,
        ge=0.1,
        le=1.0,
        description="Mean share of the KV cache in use; cached blocks that no request refers to are free. Default: 0.75.",
        examples=[0.6],
    )
    waiting_per_replica: int = Field(
        4, ge=1, le=10_000, description="Waiting requests for each engine that serves. Default: 4.", examples=[8]
    )
    ttft_p95: Delay | None = Field(
        None,
        description="Time to the first token, the 95th percentile of a minute, in mode Builtin: while it is exceeded an engine is given less than it "
        "carries, down to half. A number and ms or s. Default: absent, and no matter.",
        examples=["1500ms"],
    )


class Behavior(Strict):
    """How fast, in mode Builtin; `scaleDownDelay` in mode HPA too. Times are a number and s, m or h."""

    stable_window: Duration = Field(
        "60s", description="Demand is the mean of so long; 2s to 1h. Default: 60s.", examples=["30s"]
    )
    panic_window: Duration = Field(
        "10s",
        description="And of so long when it exceeds `panicFactor` times what the engines can do. Default: 10s.",
        examples=["5s"],
    )
    panic_factor: float = Field(
        2.0, ge=1.1, le=10.0, description="How far above capacity is a panic. Default: 2.", examples=[1.5]
    )
    scale_down_delay: Duration = Field(
        "300s",
        description="Engines go when they were not needed for so long; in mode Builtin also not for two cold starts, which are measured. "
        "At most 24h, in mode HPA 1h. Default: 300s.",
        examples=["10m"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.panicWindow) <= duration(self.stableWindow)",
            message="panicWindow must be at most stableWindow: lower it, or raise stableWindow",
            holds=lambda b: seconds(b.panic_window) <= seconds(b.stable_window),
        ),
        Rule(
            cel="duration(self.stableWindow) >= duration('2s') && duration(self.stableWindow) <= duration('1h')",
            message="stableWindow must be 2s to 1h",
            holds=lambda b: 2 <= seconds(b.stable_window) <= 3600,
        ),
        Rule(
            cel="duration(self.scaleDownDelay) <= duration('24h')",
            message="scaleDownDelay must be at most 24h: to keep engines for longer, raise min",
            holds=lambda b: seconds(b.scale_down_delay) <= 86400,
        ),
    )


class Wake(Strict):
    """How many requests each router holds for a model without an engine, and for how long."""

    max_queued: int = Field(
        200, ge=1, le=100_000, description="One more is answered 429, with Retry-After. Default: 200.", examples=[50]
    )
    max_wait: Duration = Field(
        "300s",
        description="After so long the answer is 503, with Retry-After; more than an engine takes to load. "
        "A number and s, m or h; at most 1h. Default: 300s.",
        examples=["10m"],
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="duration(self.maxWait) <= duration('1h')",
            message="maxWait must be at most 1h: no client waits longer",
            holds=lambda w: seconds(w.max_wait) <= 3600,
        ),
    )


class ScaleToZero(Strict):
    """No engine while nobody asks; the router holds what comes, and the first request brings one back."""

    idle_after: Duration = Field(
        "20m",
        description="The last engine goes when there was no request for so long. A number and s, m or h. Default: 20m.",
        examples=["5m"],
    )
    wake: Wake = Field(default_factory=Wake, description="What is held meanwhile.")


class Autoscaling(Strict):
    """Who decides how many engines there are."""

    mode: Literal["Manual", "Builtin", "HPA", "External"] = Field(
        "Manual",
        description="`Manual`: you, by `replicas`. `External`: a HorizontalPodAutoscaler or KEDA of yours, which writes the resource's `/scale`. "
        "`HPA`: a HorizontalPodAutoscaler that is made for the resource, from the engines' metrics; needs a cluster whose metrics API has them. "
        "`Builtin`: the operator, from what the engines have to do; `replicas` is then ignored. Default: Manual.",
        examples=["Builtin"],
    )
    min: int = Field(
        1,
        ge=0,
        le=1000,
        description="The fewest engines, in modes Builtin and HPA; 0 with `scaleToZero`. Default: 1.",
        examples=[0],
    )
    max: int | None = Field(
        None, ge=1, le=1000, description="The most engines, in modes Builtin and HPA, which need it.", examples=[6]
    )
    targets: Targets = Field(
        default_factory=Targets,
        description="What counts as too full, in mode Builtin; in mode HPA what engines are to have at the mean.",
    )
    behavior: Behavior = Field(
        default_factory=Behavior, description="How fast, in mode Builtin; `scaleDownDelay` in mode HPA too."
    )
    scale_to_zero: ScaleToZero | None = Field(
        None, description="Present: no engine while nobody asks, in mode Builtin. Default: absent."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(self.mode in ['Builtin', 'HPA']) || has(self.max)",
            message="modes Builtin and HPA need max: say how many engines there may be",
            holds=lambda a: a.mode not in ("Builtin", "HPA") or a.max is not None,
        ),
        Rule(
            cel="self.mode != 'HPA' || !has(self.behavior) || !has(self.behavior.scaleDownDelay) || "
            "duration(self.behavior.scaleDownDelay) <= duration('1h')",
            message="mode HPA needs a scaleDownDelay of at most 1h: a HorizontalPodAutoscaler looks no further back",
            holds=lambda a: a.mode != "HPA" or seconds(a.behavior.scale_down_delay) <= 3600,
        ),
        Rule(
            cel="self.mode == 'Builtin' || !has(self.targets) || !has(self.targets.ttftP95)",
            message="targets.ttftP95 needs mode: Builtin: take it out, or let the operator decide",
            holds=lambda a: a.mode == "Builtin" or a.targets.ttft_p95 is None,
        ),
        Rule(
            cel="!has(self.max) || self.min <= self.max",
            message="min must be at most max: lower min, or raise max",
            holds=lambda a: a.max is None or a.min <= a.max,
        ),
        Rule(
            cel="!has(self.scaleToZero) || (self.min == 0 && self.mode == 'Builtin')",
            message="scaleToZero needs min: 0 and mode: Builtin",
            holds=lambda a: a.scale_to_zero is None or (a.min == 0 and a.mode == "Builtin"),
        ),
        Rule(
            cel="self.min > 0 || has(self.scaleToZero)",
            message="min: 0 needs scaleToZero, which says when the last engine goes; `scaleToZero: {}` is 20 minutes",
            holds=lambda a: a.min > 0 or a.scale_to_zero is not None,
        ),
    )
