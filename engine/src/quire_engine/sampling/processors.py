"""What is done to logits before a token is chosen, besides temperature and what cuts the tail (drawing.py).

Each processor keeps what it needs by slot, and overwrites the rows that asked for it. The output so far, where one
needs it, lives on the device: the host may not have seen the last token yet.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from quire_engine.core.step import Placement
from quire_engine.ops import IN_PROMPT, Ops
from quire_engine.sampling.rows import Rows, SlotLists, upload

__all__ = ["AllowedTokens", "BadWords", "LogitBias", "MinTokens", "Penalties", "Processor"]

NEVER = float("-inf")


class Processor(Protocol):
    def place(self, placed: Placement) -> bool:
        """A sequence takes a slot: does it need this? If not, nothing else is called for it."""
        ...

    def apply(self, logits: Tensor, rows: Rows) -> None:
        """Overwrite these rows of [S, V]."""
        ...

    def note(self, tokens: Tensor, rows: Rows) -> None:
        """These tokens, [R], were chosen."""
        ...


class AllowedTokens:
    """All other tokens are ruled out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ids = SlotLists(device)

    def place(self, placed: Placement) -> bool:
        if placed.params.allowed is None:
            return False
        self._ids.put(placed.slot, np.array(placed.params.allowed, np.int64))
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        row, ids = self._ids.gather(rows)
        kept = logits[row, ids]
        logits.index_fill_(0, upload(rows.index, self._device), NEVER)
        logits[row, ids] = kept

    def note(self, tokens: Tensor, rows: Rows) -> None:
        pass


class BadWords:
    """The last token of a sequence is ruled out where the output ends with the ones before it.

    The tails of the outputs, [slots, W], are as wide as the longest word needs, and W grows with it:

        output  ... 5 6 7        tail  6 7     word  6 7 9: prefix  6   7 -> 9 is ruled out
        output  7                tail -1 7     word  7 8:   prefix ANY  7 -> 8 is ruled out
    """

    ANY = -2  # in a prefix; -1 in a tail is where the output has not begun, which no prefix has

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._device = device
        self._words: dict[int, tuple[tuple[int, ...], ...]] = {}
        self._lists = SlotLists(device)
        self._tails = torch.full((max_num_seqs, 0), -1, dtype=torch.int64, device=device)

    def place(self, placed: Placement) -> bool:
        self._words.pop(placed.slot, None)
        words = placed.params.bad_words
        if not words:
            return False
        width = max(len(word) for word in words) - 1
        if width > self._tails.shape[1]:
            self._tails = torch.nn.functional.pad(self._tails, (width - self._tails.shape[1], 0), value=-1)
            for slot, others in self._words.items():
                self._list(slot, others)
        self._words[placed.slot] = words
        self._list(placed.slot, words)
        width = self._tails.shape[1]
        output = placed.tokens[placed.num_prompt :]
        tail = [*[-1] * width, *output][len(output) :]
        self._tails[placed.slot] = upload(np.array(tail, np.int64), self._device)
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        row, slot, prefixes, last = self._lists.gather(rows)
        met = ((prefixes == self._tails[slot]) | (prefixes == self.ANY)).all(dim=-1)  # [words]
        # Two words may end alike, so that this has to add: -inf once or more is -inf.
        logits.index_put_((row, last), torch.where(met, NEVER, 0.0), accumulate=True)

    def note(self, tokens: Tensor, rows: Rows) -> None:
        slots = upload(rows.slots, self._device)
        self._tails[slots] = torch.cat((self._tails[slots], tokens[:, None]), dim=-1)[:, 1:]

    def _list(self, slot: int, words: tuple[tuple[int, ...], ...]) -> None:
        prefixes = np.full((len(words), self._tails.shape[1]), self.ANY, np.int64)
        for prefix, word in zip(prefixes, words, strict=True):
            prefix[len(prefix) - len(word) + 1 :] = word[:-1]
        self._lists.put(slot, np.full(len(words), slot), prefixes, np.array([word[-1] for word in words], np.int64))


class LogitBias:
    def __init__(self, device: torch.device) -> None:
        self._biases = SlotLists(device)

    def place(self, placed: Placement) -> bool:
        biases = dict(placed.params.logit_bias)
        if biases:
            self._biases.put(placed.slot, np.array([*biases], np.int64), np.array([*biases.values()], np.float32))
        return bool(biases)

    def apply(self, logits: Tensor, rows: Rows) -> None:
        row, ids, values = self._biases.gather(rows)
        logits[row, ids] += values

    def note(self, tokens: Tensor, rows: Rows) -> None:
        pass


class MinTokens:
    """What would end the output is ruled out while it is too short."""

    def __init__(self, max_num_seqs: int, device: torch.device) -> None:
        self._until = np.zeros(max_num_seqs, np.int64)  # position from which on it may end
        self._ends = SlotLists(device)

    def place(self, placed: Placement) -> bool:
        params = placed.params
        if not params.min_tokens or not params.stop_token_ids:
            return False
        self._until[placed.slot] = placed.num_prompt + params.min_tokens
        self._ends.put(placed.slot, np.array(sorted(params.stop_token_ids), np.int64))
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        early = rows.positions < self._until[rows.slots]
        if early.any():
            row, ids = self._ends.gather(rows.where(early))
            logits[row, ids] = NEVER

    def note(self, tokens: Tensor, rows: Rows) -> None:
        pass


class Penalties:
    """Repetition: of tokens in prompt or output; frequency and presence: of those in the output.

    `_seen` [slots, V] counts each token in the output, and has one bit more for those of the prompt. On a CPU its
    pages are the kernel's zero page until they are written: slots that never penalise take no memory. A GPU has no such
    pages, and gives 4 bytes for each.
    """

    def __init__(self, ops: Ops, vocabulary: int, max_num_seqs: int, device: torch.device) -> None:
        self._penalise = ops.penalise
        self._vocabulary = vocabulary
        self._device = device
        shape = (max_num_seqs, vocabulary)
        on_cpu = device.type == "cpu"  # torch.zeros would write them
        self._seen = (
            torch.from_numpy(np.zeros(shape, np.int32))
            if on_cpu
            else torch.zeros(shape, dtype=torch.int32, device=device)
        )
        self._strength = np.zeros((max_num_seqs, 3), np.float32)  # repetition, frequency, presence

    def place(self, placed: Placement) -> bool:
        params = placed.params
        strength = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
        if strength == (1.0, 0.0, 0.0):
            return False
        self._strength[placed.slot] = strength
        tokens = np.array(placed.tokens, np.int64)
        seen = np.bincount(tokens[placed.num_prompt :], minlength=self._vocabulary)
        seen[tokens[: placed.num_prompt]] |= IN_PROMPT
        self._seen[placed.slot] = upload(seen.astype(np.int32), self._device)
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        index, slots, strength = (
            upload(each, self._device) for each in (rows.index, rows.slots, self._strength[rows.slots])
        )
        self._penalise(logits, index, self._seen, slots, strength)

    def note(self, tokens: Tensor, rows: Rows) -> None:
        self._seen[upload(rows.slots, self._device), tokens.clamp(min=0)] += 1
