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
from time import thread_time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.core.step import Placement
from quire_engine.grammars.store import GrammarStore
from quire_engine.sampling.rows import Rows, in_blocks, upload

__all__ = ["GrammarMask"]

NEVER = float("-inf")
FREE_S = 0.005  # of the processor, for one token of one request; what it takes beyond adds up to at most
PATIENCE_S = 0.25
LEAST = -1e30  # what is not ruled out, but by nothing else can be preferred


class GrammarMask:
    """A `Processor` (processors.py)."""

    def __init__(
        self, grammars: GrammarStore, token_bytes: Sequence[bytes], max_num_seqs: int, device: torch.device
    ) -> None:
        self._grammars = grammars
        self._token_bytes = token_bytes
        self._device = device
        self._matchers: list[Any] = [None] * max_num_seqs  # None: it has none, or has ended
        self._ends: list[list[int]] = [[]] * max_num_seqs  # tokens that end the output where the grammar may end
        self._end_bits: list[list[tuple[int, int]]] = [
            []
        ] * max_num_seqs  # for each of them a word of the mask, and a bit
        self._bits = np.zeros((max_num_seqs, -(-len(token_bytes) // 32)), np.uint32)  # a bit for each token
        self._spent = [0.0] * max_num_seqs  # seconds beyond what is free
        self._owed: list[tuple[int, int]] = []  # slots, and where the tokens are that their matchers have not seen
        self._chosen = torch.empty(0, dtype=torch.int64)
        self._arrived: torch.cuda.Event | None = None

    def place(self, placed: Placement) -> bool:
        slot, params = placed.slot, placed.params
        self._owed = [each for each in self._owed if each[0] != slot]
        self._matchers[slot], self._spent[slot] = None, 0.0
        if params.grammar is None:
            return False
        stops = sorted(params.stop_token_ids)
        self._ends[slot] = [token for token in stops if not self._token_bytes[token]] or stops
        self._end_bits[slot] = [(token >> 5, 1 << (token & 31)) for token in self._ends[slot]]
        matcher = self._grammars.matcher(params.grammar, self._ends[slot])
        if all(matcher.accept_token(token, False) for token in placed.tokens[placed.num_prompt :]):
            self._matchers[slot] = matcher
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        self._take_owed()
        bits, slots = self._bits[: len(rows)], rows.slots.tolist()
        self._fill(bits, slots)
        forced = [i for i, slot in enumerate(slots) if self._can_only_end(bits[i], self._end_bits[slot])]
        spared = [(rows.index[i], self._ends[slots[i]]) for i in forced]
        values = [logits[row, ends].clamp(min=LEAST) for row, ends in spared]
        if logits.is_cuda:
            _mask_on_device(logits, bits, rows, self._device)
        else:
            _mask(logits.numpy(), bits, rows)
        for (row, ends), value in zip(spared, values, strict=True):
            logits[row, ends] = value

    def note(self, tokens: Tensor, rows: Rows) -> None:
        self._owed = list(zip(rows.slots.tolist(), range(len(rows)), strict=True))
        self._chosen = tokens
        if tokens.is_cuda:
            self._chosen = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
            self._chosen.copy_(tokens, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def _take_owed(self) -> None:
        """Let the matchers see what was chosen last."""
        if not self._owed:
            return
        if self._arrived is not None:
            self._arrived.synchronize()
        chosen: list[int] = self._chosen.tolist()
        for slot, i in self._owed:
            matcher = self._matchers[slot]
            if matcher is None:
                continue
            began = thread_time()
            ended = chosen[i] in self._ends[slot] or not matcher.accept_token(chosen[i], False)
            self._spent[slot] += thread_time() - began
            if ended:
                self._matchers[slot] = None
        self._owed = []

    def _fill(self, bits: NDArray[np.uint32], slots: list[int]) -> None:
        view = bits.view(np.int32)
        for i, slot in enumerate(slots):
            matcher, began = self._matchers[slot], thread_time()
            if matcher is not None:
                matcher.fill_next_token_bitmask(view, i, False)
                self._spent[slot] = max(0.0, self._spent[slot] + thread_time() - began - FREE_S)
                if self._spent[slot] > PATIENCE_S:
                    matcher = self._matchers[slot] = None
            if matcher is None:
                bits[i] = 0

    def _can_only_end(self, bits: NDArray[np.uint32], ends: list[tuple[int, int]]) -> bool:
        """Are end tokens allowed, and nothing else?"""
        if not any(bits.item(word) & bit for word, bit in ends):
            return False
        others = bits.copy()
        for word, bit in ends:
            others[word] &= ~np.uint32(bit)
        return not others.any()


def _mask(logits: NDArray[np.float32], bits: NDArray[np.uint32], rows: Rows) -> None:
    ruled_out = np.unpackbits(~bits.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little").view(np.bool_)
    if len(rows) == len(logits):
        np.copyto(logits, NEVER, where=ruled_out)
    else:
        logits[rows.index] = np.where(ruled_out, np.float32(NEVER), logits[rows.index])


def _mask_on_device(logits: Tensor, bits: NDArray[np.uint32], rows: Rows, device: torch.device) -> None:
    packed = upload(bits.view(np.uint8), device)  # [R, bytes]
    shifts = torch.arange(8, dtype=torch.uint8, device=device)
    for block in in_blocks(len(rows), logits.shape[1], device):
        index = upload(rows.index[block], device)
        allowed = (packed[block, :, None] >> shifts).bitwise_and_(1).flatten(1)[:, : logits.shape[1]]
        logits[index] = logits[index].masked_fill_(allowed == 0, NEVER)
