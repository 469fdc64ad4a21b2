"""Rotary position embedding: the tables of angles, made once.

The kinds differ in how often each pair of a head turns. Formulas are those of transformers' modeling_rope_utils.py;
`dynamic` differs from the default beyond the trained length only, where no sequence gets (spec.py).
"""

import math

import torch
from torch import Tensor

from quire_engine.ropes import Rope
from quire_engine.spec import ModelSpec

__all__ = ["rotary_table", "rotary_tables"]


def rotary_tables(spec: ModelSpec, device: torch.device) -> list[Tensor | None]:
    """One for each layer; layers of the same kind share it."""
    tables = {rope: rotary_table(rope, spec.trained_len, device) for rope in set(spec.ropes) if rope is not None}
    return [None if rope is None else tables[rope] for rope in spec.ropes]


def rotary_table(rope: Rope, positions: int, device: torch.device) -> Tensor:
    """[positions, rope.dim] float32: cosines in the left half, sines in the right."""
    frequency = _frequencies(rope)  # [rope.dim / 2]
    angle = torch.arange(positions).float()[:, None] * frequency  # [positions, rope.dim / 2]
    return (torch.cat((angle.cos(), angle.sin()), dim=-1) * rope.attention_factor).to(device)


def _frequencies(rope: Rope) -> Tensor:
    """Radians from one position to the next."""
    plain = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim)
    if rope.kind == "linear":
        return plain / rope.factor
    if rope.kind in ("divided", "longrope"):
        return plain / torch.tensor(rope.divisors)
    if rope.kind == "llama3":
        return _llama3(rope, plain)
    if rope.kind == "yarn":
        return _yarn(rope, plain)
    return plain


def _llama3(rope: Rope, plain: Tensor) -> Tensor:
    """Pairs that turn seldom within the original length are stretched, those that turn often are not."""
    turns = rope.original_len * plain / (2 * math.pi)
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = share.clamp(0, 1)  # 1: left as it is
    return share * plain + (1 - share) * plain / rope.factor


def _yarn(rope: Rope, plain: Tensor) -> Tensor:
    """The same between two pairs, of which one turns `beta_fast` and the other `beta_slow` times."""

    def pair(turns: float) -> float:
        return rope.dim * math.log(rope.original_len / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair(rope.beta_fast), pair(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = high - low or 0.001
    share = 1 - ((torch.arange(rope.dim // 2).float() - low) / width).clamp(0, 1)  # 1: left as it is
    return share * plain + (1 - share) * plain / rope.factor
