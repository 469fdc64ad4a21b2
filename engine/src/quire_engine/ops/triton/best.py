"""The best token of each row of logits. Grid: a program a row, which reads it once in blocks."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["best"]

BLOCK = 4096


def best(logits: Tensor) -> Tensor:
    logits = logits.contiguous()
    rows, width = logits.shape
    y = torch.empty(rows, dtype=torch.int64, device=logits.device)
    _best[(rows,)](logits, y, width, BLOCK=BLOCK, num_warps=8)
    return y


@triton.jit
def _best(x_at, y_at, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = float("-inf")
    where = 0
    unusable = 0  # NaN or +inf
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_at + row * width + column, mask=column < width, other=float("-inf"))
        unusable += tl.sum(((x != x) | (x == float("inf"))).to(tl.int32), 0)
        x = tl.where(x == x, x, float("-inf"))
        top = tl.max(x, 0)
        first = tl.min(tl.where(x == top, column, width), 0)
        where = tl.where(top > largest, first, where)
        largest = tl.maximum(largest, top)
    y = tl.where(largest == float("-inf"), -2, where)
    tl.store(y_at + row, tl.where(unusable > 0, -1, y).to(tl.int64))
