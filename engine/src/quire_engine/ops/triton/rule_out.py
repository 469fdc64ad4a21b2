"""What a grammar does not allow is ruled out of rows of logits. Grid: a program a row and block of its tokens, which
reads the bits of those alone and writes where one is missing."""

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["rule_out"]

BLOCK = 4096


def rule_out(logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
    width, words = logits.shape[1], allowed.shape[1]
    grid = (len(rows), triton.cdiv(width, BLOCK))
    _rule_out[grid](logits, rows, allowed, logits.stride(0), width, words, BLOCK=BLOCK, num_warps=8)


@triton.jit
def _rule_out(x_at, rows_at, allowed_at, stride, width, words, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_at + number)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    bits = tl.load(allowed_at + number * words + column // 32, mask=inside, other=0)
    missing = ((bits >> (column % 32)) & 1) == 0
    tl.store(x_at + row * stride + column, float("-inf"), mask=inside & missing)
