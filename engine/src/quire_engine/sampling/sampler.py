"""Chooses the next token of each row.

Randomness is stateless: the noise of a row is a hash of (seed, position, token), so that a request gets the
same tokens in any batch, after a preemption, and on any device. Sampling is the Gumbel trick: the argmax of
logits / temperature + noise is a draw from the softmax.
"""

import torch
from torch import Tensor

from quire_engine.runtime.batch import Sampling

__all__ = ["sample", "to_unit", "uniform_noise"]

_MASK = 0xFFFFFFFF


def sample(logits: Tensor, how: Sampling) -> Tensor:
    """[S, vocabulary] float32 -> [S] token ids."""
    greedy = logits.argmax(dim=-1)
    if how.all_greedy:
        return greedy
    scaled = logits / how.temperature.clamp(min=1e-6)[:, None]
    if how.any_top:
        scaled = _keep_top(scaled, how.top_k, how.top_p)
    noise = uniform_noise(how.seeds, how.positions, logits.shape[-1])
    drawn = (scaled - torch.log(-torch.log(noise))).argmax(dim=-1)
    return torch.where(how.temperature == 0, greedy, drawn)


def _keep_top(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Set to -inf what is neither among the `top_k` best nor in the smallest set that has `top_p` of the mass.

    Both count on the same order, best first; top_p looks at the mass among those which top_k left.
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)  # [S, V]
    rank = torch.arange(logits.shape[-1], device=logits.device)
    beyond_k = (top_k > 0)[:, None] & (rank >= top_k[:, None])
    ordered = ordered.masked_fill(beyond_k, float("-inf"))
    mass_before = ordered.softmax(dim=-1).cumsum(dim=-1).roll(1, dims=-1)
    beyond_p = (mass_before >= top_p[:, None]) & (top_p < 1)[:, None]
    beyond_p[:, 0] = False  # the best token always stays
    ordered = ordered.masked_fill(beyond_p, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def uniform_noise(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """[S], [S] -> [S, vocabulary] in (0, 1), from the words alone."""
    row = _mix(_mix(seeds & _MASK) ^ _mix((seeds >> 32) + 0x9E3779B9) ^ _mix(positions + 0x85EBCA6B))  # [S]
    column = torch.arange(vocabulary, device=seeds.device)
    bits = _mix(row[:, None] ^ _mix(column + 0xC2B2AE35)[None, :])  # [S, V] of 32 bits
    return to_unit(bits)


def to_unit(bits: Tensor) -> Tensor:
    """32-bit words -> float32 in (0, 1): with 23 bits and a half, neither end is reached by rounding."""
    return ((bits >> 9).float() + 0.5) / (1 << 23)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words that flips each output bit with half of the input flips ("lowbias32")."""
    x = x & _MASK
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _MASK
    return x ^ (x >> 16)
