"""One token at random from each row: temperature, then min-p, top-k, top-p, then the draw.

The draw is the Gumbel trick: the argmax of logits / temperature + noise is a draw from their softmax. Which tokens
top-k and top-p leave is defined on the order best_first; where few are left, only the beginning of it is looked at,
and only those tokens get noise.

A row's tokens never depend on its neighbours: what is summed up over a row is summed up as integers, whose sum has
no order.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.core.step import Placement
from quire_engine.sampling.noise import Noise, row_words
from quire_engine.sampling.ordering import best_first
from quire_engine.sampling.rows import Rows, in_blocks, upload

__all__ = ["Drawing"]

WIDTHS = (256, 8192)  # how much of the order is looked at, before all of it
ONE = float(1 << 40)  # the best token's mass; 2^18 tokens of it, and ten times that, fit into an int64


class Drawing:
    def __init__(self, vocabulary: int, max_num_seqs: int, device: torch.device) -> None:
        self._vocabulary = vocabulary
        self._device = device
        self._noise = Noise(vocabulary, device)
        self._temperature = np.ones(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int64)  # 0 is all
        self._top_p = np.ones(max_num_seqs)
        self._min_p = np.zeros(max_num_seqs, np.float32)
        self._seeds = np.zeros(max_num_seqs, np.int64)

    def place(self, placed: Placement) -> bool:
        """Does this sequence draw at all, or take the best token?"""
        slot, params = placed.slot, placed.params
        if params.temperature == 0:
            return False
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k if params.top_k < self._vocabulary else 0
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._seeds[slot] = params.seed
        return True

    def draw(self, logits: Tensor, rows: Rows) -> Tensor:
        """[S, V] -> [R] tokens, of some of its rows; whatever where a row is not made of numbers."""
        tokens = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        cut = (self._top_k[rows.slots] > 0) | (self._top_p[rows.slots] < 1)
        for cuts, draw in ((False, self._draw_from_all), (True, self._draw_from_best)):
            numbers = np.flatnonzero(cut == cuts)
            for block in in_blocks(len(numbers), self._vocabulary, self._device):
                some = rows.where(numbers[block])
                drawn = draw(self._scaled(logits[upload(some.index, self._device)], some), some)
                tokens[upload(numbers[block], self._device)] = drawn
        return tokens

    def _scaled(self, logits: Tensor, rows: Rows) -> Tensor:
        """[R, V], which it overwrites: by temperature, with what min-p rules out at -inf."""
        logits /= upload(self._temperature[rows.slots], self._device)[:, None]
        min_p = self._min_p[rows.slots]
        if min_p.any():
            with np.errstate(divide="ignore"):
                distance = upload(np.log(min_p), self._device)[:, None]  # -inf: none is too far
            logits.masked_fill_(logits < logits.amax(dim=-1, keepdim=True) + distance, float("-inf"))
        return logits

    def _draw_from_all(self, scaled: Tensor, rows: Rows) -> Tensor:
        noise = self._noise.gumbel(self._words(rows))
        return noise.add_(scaled).max(dim=-1).indices

    def _draw_from_best(self, scaled: Tensor, rows: Rows) -> Tensor:
        """Each row by the narrowest part of the order that shows all which top-k and top-p leave of it."""
        tokens = torch.empty(len(rows), dtype=torch.int64, device=self._device)
        top_k, top_p = self._top_k[rows.slots], self._top_p[rows.slots]
        total = self._total(scaled, top_k)  # [R]
        left = np.arange(len(rows))
        for width in (*(w for w in WIDTHS if w < self._vocabulary), self._vocabulary):
            # Whether top-p is content with so many shows on the device, and a GPU is not waited for.
            tried = top_k[left] <= width if self._device.type == "cpu" else (top_k[left] <= width) & (top_k[left] > 0)
            numbers = left if width == self._vocabulary else left[tried]
            if not len(numbers):
                continue
            index = upload(numbers, self._device)
            drawn, complete = self._draw_from_first(
                scaled[index], width, top_k[numbers], top_p[numbers], total[index], rows.where(numbers)
            )
            tokens[index] = drawn
            done = (top_k[numbers] > 0) | (width == self._vocabulary)
            if not done.all():
                done |= complete.numpy()
            left = np.setdiff1d(left, numbers[done])
            if not len(left):
                break
        return tokens

    def _draw_from_first(
        self,
        scaled: Tensor,
        width: int,
        top_k: NDArray[np.int64],
        top_p: NDArray[np.float64],
        total: Tensor,
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """Tokens [R], and whether top-p would leave none beyond `width`, [R]."""
        values, ids = best_first(scaled, width)  # [R, width]
        mass = _mass(values - values[:, :1])
        reached = mass.cumsum(dim=-1)
        k = upload(np.where(top_k > 0, top_k, width), self._device)[:, None]
        inside = reached.gather(-1, k - 1)  # the mass of the best k
        total = torch.where(upload(top_k > 0, self._device)[:, None], inside, total[:, None])
        enough = upload(np.where(top_p < 1, top_p, np.inf), self._device)[:, None] * total
        kept = reached - mass < enough  # top-p: the mass before it is not enough yet
        kept[:, 0] = True  # the best token always stays
        kept &= torch.arange(width, device=self._device) < k
        noisy = self._noise.gumbel(self._words(rows), ids).add_(values).masked_fill_(~kept, float("-inf"))
        tokens = ids.gather(-1, noisy.max(dim=-1, keepdim=True).indices)[:, 0]
        return tokens, reached[:, -1] >= enough[:, 0]

    def _total(self, scaled: Tensor, top_k: NDArray[np.int64]) -> Tensor:
        """[R] the mass of all tokens of a row; top-k's rows have another total, and need none."""
        if top_k.all():
            return torch.zeros(len(scaled), dtype=torch.int64, device=self._device)
        return _mass(scaled - scaled.amax(dim=-1, keepdim=True)).sum(dim=-1)

    def _words(self, rows: Rows) -> Tensor:
        return upload(row_words(self._seeds[rows.slots], rows.positions), self._device)


def _mass(below_best: Tensor) -> Tensor:
    """Differences of logits to the best one -> probabilities, in units of which the best one has 2^40."""
    return (below_best.exp().double() * ONE).long()
