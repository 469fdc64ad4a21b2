"""Rules out the tokens that the grammars of rows do not allow.

The host walks each grammar by the tokens that were chosen, so it has to see them. Where it computes them itself other cores
walk at once, while it reports the tokens and plans the next step. Of a device they are waited for as late as can be, when
the next forward pass was launched, and walked while that runs. A row of a sequence that has ended meanwhile is masked altogether:
its token is never looked at. A grammar may take longer with every token (one that can be read in many ways does): it ends its
request before it holds up those of others.

    note of step n:        the tokens, on their way to the host; on a CPU: begin to walk
    apply of step n + 1:   on a device: take the tokens, and walk  ->  a mask for each row, to the device
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
        self._rule_out = ops.rule_out
        self._walker = ops.walker(max_num_seqs, -(-len(token_bytes) // 32))  # no matcher: it has ended
        self._matched: set[int] = set()  # slots
        self._walking: NDArray[np.int64] | None = None  # slots
        self._noted: tuple[NDArray[np.int64], Tensor, torch.cuda.Event] | None = None  # slots, tokens on their way
        self._new: set[int] = set()  # slots whose masks are not there yet
        self._ends: list[list[int]] = [[]] * max_num_seqs  # tokens that end the output where the grammar may end
        self._clashing: set[int] = set()  # slots where others may rule out the end when nothing else is left
        self._spent = np.zeros(max_num_seqs)  # seconds beyond what is free
        self._somebody_spent = False

    def place(self, placed: Placement) -> bool:
        slot, params = placed.slot, placed.params
        if slot in self._matched:
            self._put(slot, None)
        self._clashing.discard(slot)
        self._new.discard(slot)
        if params.grammar is None:
            return False
        self._new.add(slot)
        self._spent[slot] = 0.0
        if params.min_tokens > 0 or params.bad_words or params.logit_bias or params.allowed is not None:
            self._clashing.add(slot)
        stops = sorted(params.stop_token_ids)
        self._ends[slot] = [token for token in stops if not self._token_bytes[token]] or stops
        matcher = self._grammars.matcher(params.grammar, self._ends[slot])
        goes_on = all(matcher.accept_token(token, False) for token in placed.tokens[placed.num_prompt :])
        self._put(slot, matcher if goes_on else None)
        return True

    def apply(self, logits: Tensor, rows: Rows) -> None:
        self._take_noted()
        self._finish()
        if self._new and (new := [slot for slot in rows.slots.tolist() if slot in self._new]):
            self._new.difference_update(new)
            self._begin(np.array(new), np.full(len(new), -1))
            self._finish()
        masks = self._walker.masks[rows.slots]
        spared = self._spared(logits, rows, masks) if self._clashing else ()
        self._rule_out(logits, upload(rows.index, self._device), upload(masks, self._device))
        for row, ends, values in spared:
            logits[row, ends] = values

    def note(self, tokens: Tensor, rows: Rows) -> None:
        if not tokens.is_cuda:
            self._begin(rows.slots, tokens.numpy())
            return
        on_host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
        on_host.copy_(tokens, non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record()
        self._noted = rows.slots, on_host, arrived

    def _spared(self, logits: Tensor, rows: Rows, masks: NDArray[np.int32]) -> list[tuple[int, list[int], Tensor]]:
        """Of rows that can only end: where that is said, and what is to stand there."""
        spared: list[tuple[int, list[int], Tensor]] = []
        for row, slot, mask in zip(rows.index.tolist(), rows.slots.tolist(), masks.view(np.uint32), strict=True):
            if slot in self._clashing and _can_only_end(mask, self._ends[slot]):
                spared.append((row, self._ends[slot], logits[row, self._ends[slot]].clamp(min=LEAST)))
        return spared

    def _take_noted(self) -> None:
        """Walk by what a device has chosen. Of slots that were placed since, that is another's."""
        if self._noted is None:
            return
        slots, tokens, arrived = self._noted
        self._noted = None
        arrived.synchronize()
        still = np.array([slot not in self._new for slot in slots.tolist()])
        self._begin(slots[still], tokens.numpy()[still])

    def _begin(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self._walking = slots
        self._walker.begin(slots, tokens)

    def _put(self, slot: int, matcher: Any) -> None:
        self._finish()
        self._walker.put(slot, matcher)
        (self._matched.discard if matcher is None else self._matched.add)(slot)

    def _finish(self) -> None:
        """What was begun; who took too long does not go on."""
        if self._walking is None:
            return
        trouble, slots, self._walking = self._walker.end(), self._walking, None
        if not trouble and not self._somebody_spent:
            return
        self._spent[slots] = np.maximum(0.0, self._spent[slots] + self._walker.seconds[slots] - FREE_S)
        self._somebody_spent = bool(self._spent.any())
        for slot in slots[(self._walker.seconds[slots] < 0) | (self._spent[slots] > PATIENCE_S)].tolist():
            self._put(slot, None)
            self._walker.masks[slot] = 0


def _can_only_end(mask: NDArray[np.uint32], ends: Sequence[int]) -> bool:
    """Are end tokens allowed, and nothing else?"""
    others, may_end = mask.copy(), False
    for end in ends:
        word, bit = end >> 5, np.uint32(1 << (end & 31))
        may_end = may_end or bool(others[word] & bit)
        others[word] &= ~bit
    return may_end and not others.any()
