"""Randomness without state: the noise of a token is a hash of (seed, position, token).

A request so gets the same tokens in any batch, after a preemption, and on any device. Whoever changes a bit of this
changes the answers to all requests that bring a seed: test_sampler.py spells the hash out a second time.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["gumbel", "row_words", "to_unit", "uniform"]

_MASK = 0xFFFFFFFF
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def gumbel(words: Tensor, vocabulary: int, tokens: Tensor | None = None) -> Tensor:
    """[R] int32 of `row_words` -> Gumbel noise of the given `tokens` [R, K], or of all: [R, V] float32."""
    return uniform(words, vocabulary, tokens).log_().neg_().log_().neg_()


def uniform(words: Tensor, vocabulary: int, tokens: Tensor | None = None) -> Tensor:
    columns = _columns(vocabulary, words.device)
    return to_unit(_mix(words[:, None] ^ (columns if tokens is None else columns[tokens])))


@cache
def _columns(vocabulary: int, device: torch.device) -> Tensor:
    """[V] int32: what each token gives to the hash."""
    with torch.inference_mode(False):
        return _mix(_signed(np.arange(vocabulary) + 0xC2B2AE35)).to(device)


def row_words(seeds: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """[R], [R] -> [R]: what seed and position give to the hash."""
    low, high = _mix(_signed(seeds)), _mix(_signed((seeds >> 32) + 0x9E3779B9))
    words: NDArray[np.int32] = _mix(low ^ high ^ _mix(_signed(positions + 0x85EBCA6B))).numpy()
    return words


def to_unit(bits: Tensor) -> Tensor:
    """32-bit words -> float32 in (0, 1): with 23 bits and a half, neither end is reached by rounding."""
    return ((bits >> 9) & 0x7FFFFF).float().add_(0.5).div_(1 << 23)


def _signed(values: NDArray[np.int64]) -> Tensor:
    """The low 32 bits, as the int32 of the same bits: torch has no unsigned arithmetic."""
    return torch.from_numpy((values & _MASK).astype(np.uint32).view(np.int32))


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit words that flips each output bit with half of the input flips ("lowbias32"). Overwrites.

    A signed shift drags the sign along; the masks take it off.
    """
    x ^= (x >> 16) & 0xFFFF
    x *= _FIRST
    x ^= (x >> 15) & 0x1FFFF
    x *= _SECOND - (1 << 32)
    x ^= (x >> 16) & 0xFFFF
    return x
