"""Log probabilities of tokens, from the model's own distribution: before anything is done to the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quire_engine.core.step import TokenLogprob
from quire_engine.ops import Ops
from quire_engine.sampling.rows import in_blocks

__all__ = ["Scores", "token_logprobs"]


class Scores:
    """Those of one token a row, on their way from the device; read them after a synchronisation."""

    def __init__(self, numbers: Tensor, ids: Tensor, tops: Sequence[int]) -> None:
        """What ops.score says, and how many of the likeliest are asked for by each row. Below 0 is no token."""
        self._tops = tops
        self._numbers = _to_host(numbers)
        self._ids = _to_host(ids)

    def read(self) -> list[TokenLogprob | None]:
        """None where there is no token."""
        found: list[TokenLogprob | None] = []
        for top, numbers, ids in zip(self._tops, self._numbers.tolist(), self._ids.tolist(), strict=True):
            best = tuple(zip(ids[2 : 2 + top], numbers[1 : 1 + top], strict=True))
            found.append(TokenLogprob(ids[0], numbers[0], ids[1], best) if ids[0] >= 0 else None)
        return found


def token_logprobs(ops: Ops, logits: Tensor, targets: Tensor, top: int) -> list[TokenLogprob]:
    """Score given tokens, [n, V] and [n], with the `top` likeliest beside each. Waits for the device."""
    found: list[TokenLogprob] = []
    for block in in_blocks(len(logits), logits.shape[-1], logits.device):
        part = targets[block]
        most = min(top, logits.shape[-1])
        scores = Scores(*ops.score(logits[block], part, most), [most] * len(part))
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
        found += [score for score in scores.read() if score is not None]
    return found


def _to_host(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
