"""A token at random from each row, in plain torch: temperature, then min-p, top-k, top-p, then the draw.

The draw is the Gumbel trick: the argmax of logits / temperature + noise is a draw from their softmax. Which tokens
top-k and top-p leave is defined on the order best_first; where few are left, only the beginning of it is looked at,
and only those tokens get noise.

A row's tokens never depend on its neighbours: what is summed up over a row is summed up as integers, whose sum has
no order.
"""

from dataclasses import fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.ops import Draws
from quire_engine.sampling.noise import gumbel
from quire_engine.sampling.ordering import best_first
from quire_engine.sampling.rows import in_blocks, upload

__all__ = ["draw"]

WIDTHS = (256, 8192)  # how much of the order is looked at, before all of it
ONE = float(1 << 40)  # the best token's mass; 2^18 tokens of it, and ten times that, fit into an int64


def draw(logits: Tensor, draws: Draws) -> Tensor:
    device = logits.device
    tokens = torch.empty(len(draws.rows), dtype=torch.int64, device=device)
    cut = (draws.top_k > 0) | (draws.top_p < 1)
    for cuts, chosen in ((False, _from_all), (True, _from_best)):
        numbers = np.flatnonzero(cut == cuts)
        for block in in_blocks(len(numbers), logits.shape[-1], device):
            some = _some(draws, numbers[block])
            drawn = chosen(_scaled(logits[upload(some.rows, device)], some), some)
            tokens[upload(numbers[block], device)] = drawn
    return tokens


def _some(draws: Draws, which: NDArray[np.int64]) -> Draws:
    return Draws(**{each.name: getattr(draws, each.name)[which] for each in fields(Draws)})


def _scaled(logits: Tensor, draws: Draws) -> Tensor:
    """[R, V], which it overwrites: by temperature, with what min-p rules out at -inf."""
    logits /= upload(draws.temperature, logits.device)[:, None]
    if np.isfinite(draws.log_min_p).any():
        distance = upload(draws.log_min_p, logits.device)[:, None]
        logits.masked_fill_(logits < logits.amax(dim=-1, keepdim=True) + distance, float("-inf"))
    return logits


def _from_all(scaled: Tensor, draws: Draws) -> Tensor:
    noise = gumbel(upload(draws.words, scaled.device), scaled.shape[-1])
    return noise.add_(scaled).max(dim=-1).indices


def _from_best(scaled: Tensor, draws: Draws) -> Tensor:
    """Each row by the narrowest part of the order that shows all which top-k and top-p leave of it."""
    device, vocabulary = scaled.device, scaled.shape[-1]
    tokens = torch.empty(len(scaled), dtype=torch.int64, device=device)
    top_k = draws.top_k
    total = _total(scaled, top_k)  # [R]
    left = np.arange(len(scaled))
    for width in (*(w for w in WIDTHS if w < vocabulary), vocabulary):
        # Whether top-p is content with so many shows on the device, and a GPU is not waited for.
        tried = top_k[left] <= width if device.type == "cpu" else (top_k[left] <= width) & (top_k[left] > 0)
        numbers = left if width == vocabulary else left[tried]
        if not len(numbers):
            continue
        index = upload(numbers, device)
        drawn, complete = _from_first(scaled[index], width, total[index], _some(draws, numbers))
        tokens[index] = drawn
        done = (top_k[numbers] > 0) | (width == vocabulary)
        if not done.all():
            done |= complete.numpy()
        left = np.setdiff1d(left, numbers[done])
        if not len(left):
            break
    return tokens


def _from_first(scaled: Tensor, width: int, total: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
    """Tokens [R], and whether top-p would leave none beyond `width`, [R]."""
    device, top_k, top_p = scaled.device, draws.top_k, draws.top_p
    values, ids = best_first(scaled, width)  # [R, width]
    mass = _mass(values - values[:, :1])
    reached = mass.cumsum(dim=-1)
    k = upload(np.where(top_k > 0, top_k, width), device)[:, None]
    inside = reached.gather(-1, k - 1)  # the mass of the best k
    total = torch.where(upload(top_k > 0, device)[:, None], inside, total[:, None])
    enough = upload(np.where(top_p < 1, top_p, np.inf), device)[:, None] * total
    kept = reached - mass < enough  # top-p: the mass before it is not enough yet
    kept[:, 0] = True  # the best token always stays
    kept &= torch.arange(width, device=device) < k
    noise = gumbel(upload(draws.words, device), scaled.shape[-1], ids)
    noisy = noise.add_(values).masked_fill_(~kept, float("-inf"))
    tokens = ids.gather(-1, noisy.max(dim=-1, keepdim=True).indices)[:, 0]
    return tokens, reached[:, -1] >= enough[:, 0]


def _total(scaled: Tensor, top_k: NDArray[np.int64]) -> Tensor:
    """[R] the mass of all tokens of a row; top-k's rows have another total, and need none."""
    if top_k.all():
        return torch.zeros(len(scaled), dtype=torch.int64, device=scaled.device)
    return _mass(scaled - scaled.amax(dim=-1, keepdim=True)).sum(dim=-1)


def _mass(below_best: Tensor) -> Tensor:
    """Differences of logits to the best one -> probabilities, in units of which the best one has 2^40."""
    return (below_best.exp().double() * ONE).long()
