"""Log probabilities of tokens, from the model's own distribution: before anything is done to the logits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from quire_engine.core.step import TokenLogprob
from quire_engine.sampling.ordering import best_first
from quire_engine.sampling.rows import in_blocks

__all__ = ["Scores", "token_logprobs"]


class Scores:
    """Log probabilities of one token a row, on their way from the device; read them after a synchronisation."""

    def __init__(self, logprobs: Tensor, tokens: Tensor, tops: Sequence[int]) -> None:
        """`logprobs` [R, V], `tokens` [R] and how many of the likeliest are asked for with each; -1 is no token."""
        self._tops = tops
        chosen = logprobs.gather(-1, tokens.clamp(min=0)[:, None])  # [R, 1]
        rank = (logprobs > chosen).sum(dim=-1, keepdim=True) + 1
        values, ids = best_first(logprobs, max(tops)) if max(tops) else (logprobs[:, :0], rank[:, :0])
        self._numbers = _to_host(torch.cat((chosen, values), dim=-1))  # [R, 1 + top] float32
        self._ids = _to_host(torch.cat((tokens[:, None], rank, ids), dim=-1))  # [R, 2 + top] int64

    def read(self) -> list[TokenLogprob | None]:
        """None where there is no token."""
        found: list[TokenLogprob | None] = []
        for top, numbers, ids in zip(self._tops, self._numbers.tolist(), self._ids.tolist(), strict=True):
            best = tuple(zip(ids[2 : 2 + top], numbers[1 : 1 + top], strict=True))
            found.append(TokenLogprob(ids[0], numbers[0], ids[1], best) if ids[0] >= 0 else None)
        return found


def token_logprobs(logits: Tensor, targets: Tensor, top: int) -> list[TokenLogprob]:
    """Score given tokens, [n, V] and [n], with the `top` likeliest beside each. Waits for the device."""
    found: list[TokenLogprob] = []
    for block in in_blocks(len(logits), logits.shape[-1], logits.device):
        part = targets[block]
        scores = Scores(logits[block].log_softmax(dim=-1), part, [min(top, logits.shape[-1])] * len(part))
        if logits.is_cuda:
            torch.cuda.current_stream(logits.device).synchronize()
        found += [score for score in scores.read() if score is not None]
    return found


def _to_host(values: Tensor) -> Tensor:
    if not values.is_cuda:
        return values
    return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
