"""Rules out the tokens that the grammars of rows do not allow.

The host walks each grammar by the tokens that were chosen, so it has to see them. It does so as late as it can: `apply` is
called after the forward pass was launched, waits for the tokens of the step before, which a GPU has finished by then,
and computes the masks while the forward pass runs. A row of a sequence that has ended meanwhile is masked altogether: its token is
never looked at. A grammar may take longer with every token (one that can be read in many ways does): it ends its request
before it holds up those of others.

    apply of step n:   take the tokens of step n - 1  ->  a mask for each row, on the host  ->  the device
    note of step n:    the tokens, on their way to the host
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.core.step import Placement
from quire_engine.grammars.store import GrammarStore
from quire_engine.ops import Ops
from quire_engine.sampling.rows import Rows, upload

__all__ = ["GrammarMask"]

FREE_S = 0.005  # of the processor, for one token of one request; what it takes beyond adds up to at most
PATIENCE_S = 0.25
LEAST = -1e30  # what is not ruled out, but by nothing else can be preferred


class GrammarMask:
    """A `Processor` (processors.py)."""

    def __init__(
        self,
        grammars: GrammarStore,
        token_bytes: Sequence[bytes],
        max_num_seqs: int,
        device: torch.device,
        ops: Ops,
    ) -> None:
        self._grammars = grammars
        self._token_bytes = token_bytes
        self._device = device
        self._walk, self._rule_out = ops.walk, ops.rule_out
        self._matchers: list[Any] = [None] * max_num_seqs  # None: it has none, or has ended
        self._ends: list[list[int]] = [[]] * max_num_seqs  # tokens that end the output where the grammar may end
        self._may_clash = np.zeros(max_num_seqs, np.bool_)  # others may rule out the end where nothing else is left
        self._masks = np.zeros((max_num_seqs, -(-len(token_bytes) // 32)), np.int32)  # by row: a bit for each token
        self._spent = np.zeros(max_num_seqs)  # seconds beyond what is free
        self._owed: dict[int, int] = {}  # slot -> where the token is that its matcher has not seen
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._arrived: torch.cuda.Event | None = None

    def place(self, placed: Placement) -> bool:
        slot, params = placed.slot, placed.params
        self._owed.pop(slot, None)
        self._matchers[slot], self._spent[slot] = None, 0.0
        if params.grammar is None:
            return False
        self._may_clash[slot] = (
            params.min_tokens > 0 or bool(params.bad_words or params.logit_bias) or params.allowed is not None
        )
        stops = sorted(params.stop_token_ids)
        self._ends[slot] = [token for token in stops if not self._token_bytes[token]] or stops
        matcher = self._grammars.matcher(params.grammar, self._ends[slot])
        if all(matcher.accept_token(token, False) for token in placed.tokens[placed.num_prompt :]):
            self._matchers[slot] = matcher
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        slots = rows.slots.tolist()
        masks = self._walked(slots)
        clashing = np.flatnonzero(self._may_clash[rows.slots]).tolist()
        forced = [i for i in clashing if _can_only_end(masks[i].view(np.uint32), self._ends[slots[i]])]
        spared = [(rows.index[i], self._ends[slots[i]]) for i in forced]
        values = [logits[row, ends].clamp(min=LEAST) for row, ends in spared]
        self._rule_out(logits, upload(rows.index, self._device), upload(masks, self._device))
        for (row, ends), value in zip(spared, values, strict=True):
            logits[row, ends] = value

    def note(self, tokens: Tensor, rows: Rows) -> None:
        self._owed = dict(zip(rows.slots.tolist(), range(len(rows)), strict=True))
        self._chosen = tokens
        if tokens.is_cuda:
            self._chosen = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._chosen.copy_(tokens, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def _walked(self, slots: list[int]) -> NDArray[np.int32]:
        """[R, words]: each row's mask, once its matcher has seen the token that was chosen last."""
        if self._owed and self._arrived is not None:
            self._arrived.synchronize()
        chosen: list[int] = [*self._chosen.tolist(), -1] if self._owed else [-1]
        tokens = np.array([chosen[self._owed.get(slot, -1)] for slot in slots], np.int64)
        self._owed = {}
        masks = self._masks[: len(slots)]
        seconds = self._walk([self._matchers[slot] for slot in slots], tokens, masks)
        self._spent[slots] = np.maximum(0.0, self._spent[slots] + seconds - FREE_S)
        for row in np.flatnonzero((seconds < 0) | (self._spent[slots] > PATIENCE_S)).tolist():
            self._matchers[slots[row]] = None
            masks[row] = 0
        return masks


def _can_only_end(mask: NDArray[np.uint32], ends: Sequence[int]) -> bool:
    """Are end tokens allowed, and nothing else?"""
    others, may_end = mask.copy(), False
    for end in ends:
        word, bit = end >> 5, np.uint32(1 << (end & 31))
        may_end = may_end or bool(others[word] & bit)
        others[word] &= ~bit
    return may_end and not others.any()
