"""The base of every type a user writes: strict fields, camelCase in YAML, rules that hold everywhere.

A `Rule` is one cross-field constraint, stated twice side by side: as CEL, which the API server
evaluates, and as a Python predicate, which `quire plan` and local mode evaluate. Both report the
same message, and tests/quire_api/bad_resources.yaml holds the two to the same verdicts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["Delay", "Duration", "Rule", "Strict", "camel", "delay_s", "seconds"]

Duration = Annotated[str, Field(max_length=8, pattern=r"^[1-9][0-9]{0,5}(s|m|h)$")]
Delay = Annotated[str, Field(max_length=8, pattern=r"^[1-9][0-9]{0,5}(ms|s)$")]  # of what a person waits for


def seconds(duration: str) -> int:
    """'90s', '15m' or '1h' in seconds."""
    return int(duration[:-1]) * {"s": 1, "m": 60, "h": 3600}[duration[-1]]


def delay_s(delay: str) -> float:
    """'1500ms' or '2s' in seconds."""
    return int(delay[:-2]) / 1000 if delay.endswith("ms") else float(delay[:-1])


@dataclass(frozen=True, slots=True)
class Rule:
    cel: str
    message: str  # says what is wrong and how to mend it
    holds: Callable[[Any], bool]


def camel(name: str) -> str:
    """`max_model_len` -> `maxModelLen`; units keep their spelling: `kv_cache_gib` -> `kvCacheGiB`."""
    first, *rest = name.split("_")
    return first + "".join("GiB" if word == "gib" else word.capitalize() for word in rest)


class Strict(BaseModel):
    """Unknown fields are refused; values are immutable once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=camel, populate_by_name=True, strict=False)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _keep_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self
