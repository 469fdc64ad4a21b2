"""How each slot draws its tokens: what a request asked for, gathered for a step's rows."""

import numpy as np

from quire_engine.core.step import Placement
from quire_engine.ops import Draws
from quire_engine.sampling.noise import row_words
from quire_engine.sampling.rows import Rows

__all__ = ["Drawing"]


class Drawing:
    def __init__(self, vocabulary: int, max_num_seqs: int) -> None:
        self._vocabulary = vocabulary
        self._temperature = np.ones(max_num_seqs, np.float32)
        self._top_k = np.zeros(max_num_seqs, np.int64)
        self._top_p = np.ones(max_num_seqs)
        self._log_min_p = np.zeros(max_num_seqs, np.float32)
        self._seeds = np.zeros(max_num_seqs, np.int64)

    def place(self, placed: Placement) -> bool:
        """Does this sequence draw at all, or take the best token?"""
        slot, params = placed.slot, placed.params
        if params.temperature == 0:
            return False
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k if params.top_k < self._vocabulary else 0
        self._top_p[slot] = params.top_p
        with np.errstate(divide="ignore"):
            self._log_min_p[slot] = np.log(np.float32(params.min_p))
        self._seeds[slot] = params.seed
        return True

    def draws(self, rows: Rows) -> Draws:
        slots = rows.slots
        return Draws(
            rows=rows.index,
            temperature=self._temperature[slots],
            log_min_p=self._log_min_p[slots],
            top_k=self._top_k[slots],
            top_p=self._top_p[slots],
            words=row_words(self._seeds[slots], rows.positions),
        )
