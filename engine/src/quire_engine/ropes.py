"""Rotary position embeddings, as config.json says them: spec.py's part for them. layers/rotary.py makes the tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire_api.footprint import ModelShape
from quire_engine.errors import ConfigFailure

__all__ = ["Rope", "latent_factor", "ropes_of", "stretched_len"]

Config = Mapping[str, Any]

THETAS = {"mixtral": 1e6, "gemma3_text": 1e6, "gpt_oss": 150_000.0}  # where config.json has none

ROPE_KEYS: dict[str, set[str]] = {  # kind -> what it is made of, besides ROPE_COMMON
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
    "divided": {"divisors"},  # GGUF's, in which llama3 is worked out
}
ROPE_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding; layers/rotary.py makes the table of it."""

    kind: str = "default"
    dim: int  # how much of a head is rotated
    interleaved: bool = False  # pairs stand side by side; not: in two halves
    theta: float = 10000.0
    factor: float = 1.0
    original_len: int = 0  # positions before they were stretched
    low_freq_factor: float = 1.0  # of llama3
    high_freq_factor: float = 4.0
    attention_factor: float = 1.0  # of yarn, as are the next ones, and of longrope
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    divisors: tuple[float, ...] = ()  # of divided and longrope: one for each pair


def ropes_of(config: Config, family: str, shape: ModelShape, positions: int, longest: int | None) -> dict[str, Rope]:
    """Type of layer -> its rotary embedding."""
    if shape.positions or family == "bloom":
        return {}
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}  # transformers 5 renamed it
    theta = config.get("rope_theta") or THETAS.get(family, 1e4)
    if not given.keys() & {"full_attention", "sliding_attention"}:
        local = {"rope_theta": config.get("rope_local_base_freq")} if family == "gemma3_text" else given
        given = {"full_attention": given, "sliding_attention": local}
    thetas = {"full_attention": theta, "sliding_attention": 1e4 if family == "gemma3_text" else theta}
    outer = config.get("partial_rotary_factor")
    width = shape.rotary or shape.head_dim
    interleaved = family == "deepseek_v2" or (family == "deepseek_v3" and bool(config.get("rope_interleave", True)))

    def rope(kind: str) -> Rope:
        said = dict(given.get(kind) or {})
        original = config.get("original_max_position_embeddings", 4096 if family == "phi3" else None)
        if original is not None:  # beside it, and what counts
            said["original_max_position_embeddings"] = original
        made = _rope(said, family, thetas[kind], width, positions, outer, longest or positions)
        return replace(made, interleaved=interleaved)

    return {kind: rope(kind) for kind in thetas}


def _rope(
    given: Config, family: str, theta: float, width: int, positions: int, outer: float | None, longest: int
) -> Rope:
    kind = given.get("rope_type") or given.get("type") or "default"
    if family == "phi3" and kind in ("su", "yarn"):  # as its first checkpoints call it
        kind = "longrope"
    known = ["default", "longrope"] if family == "phi3" else [name for name in ROPE_KEYS if name != "longrope"]
    if kind not in known:
        raise ConfigFailure(f"rotary embedding {kind!r} of a {family} is not supported yet, only {', '.join(known)}")
    said = {name for name, value in given.items() if value is not None}
    for name in sorted(said - ROPE_COMMON - ROPE_KEYS[kind]):
        raise ConfigFailure(f"rotary embedding {kind!r} with {name} is not supported yet")
    share = given.get("partial_rotary_factor") or outer or 1.0
    if share != 1.0 and family != "phi3":
        raise ConfigFailure(f"partial_rotary_factor {share} of a {family} is not supported yet, only 1")
    original = positions if (length := given.get("original_max_position_embeddings")) is None else length
    numbers = {name: given[name] for name in ROPE_KEYS[kind] if name in said or kind not in ("yarn", "longrope")}
    if kind == "divided":
        numbers["divisors"] = tuple(numbers["divisors"])
    if kind == "longrope":
        numbers = _longrope(numbers, int(width * share) // 2, positions, original, longest)
    if kind == "yarn":
        factor = numbers.setdefault("factor", positions / original)
        scales = [numbers.pop(name, 0.0) for name in ("mscale", "mscale_all_dim")]
        numbers.setdefault("attention_factor", _yarn_attention(factor, *scales))
    return Rope(
        kind=kind,
        dim=int(width * share),
        theta=given.get("rope_theta") or theta,
        original_len=original,
        **numbers,
    )


def _longrope(given: Config, pairs: int, positions: int, original: int, longest: int) -> dict[str, Any]:
    """The divisors of texts that may be longer than the original length, or of those that may not. They are chosen once:
    with others, what is stored of a text's beginning would be wrong when it grows beyond."""
    name = "long_factor" if longest > original else "short_factor"
    divisors = tuple(given[name])
    if len(divisors) != pairs:
        raise ValueError(f"{name} has {len(divisors)} numbers, and should have {pairs}")
    factor, attention = given.get("factor") or positions / original, given.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return {"divisors": divisors, "attention_factor": attention}


def latent_factor(config: Config) -> float:
    """What DeepSeek's scores are multiplied by, if its positions were stretched."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (given.get("rope_type") or given.get("type") or "default") == "default" or not given.get("mscale_all_dim"):
        return 1.0
    return float(1 + 0.1 * given["mscale_all_dim"] * math.log(max(1.0, given["factor"]))) ** 2


def _yarn_attention(factor: float, scale: float, scale_all: float) -> float:
    """What cosines and sines are multiplied by, as transformers derives it."""
    if factor <= 1:
        return 1.0
    grown = 0.1 * math.log(factor)
    return (grown * scale + 1) / (grown * scale_all + 1) if scale and scale_all else grown + 1


def stretched_len(rope: Rope | None) -> int:
    """yarn is trained for more positions than config.json counts. `dynamic` would have its angles change with every
    position beyond the trained ones, under keys that are stored already: there the trained length is the end."""
    return int(rope.factor * rope.original_len) if rope is not None and rope.kind == "yarn" else 0
