"""Products with weights in few bits (ops/packed.py), which become numbers in registers. Plain weights are torch's, unless a
request wants the same bits in any batch: then all rows are computed as few ones, FEW at a time.

    y[m, n] = sum over groups g of  scale[n, g] * sum over k of g of  (code[n, k] - zero[n, g]) * x[m, k]

Grid: a program for each block of outputs, each block of rows, and each split of the inputs. A program goes through its
inputs step by step, a step lying in one group; weights are the left side of its products, so that they go from memory to
registers as they are. Up to FEW rows (a decoding batch) reading the weights is what takes the time: their inputs are split until there
are about PROGRAMS programs, which depends on the matrix alone, so that a row's sum is made in the same order in every
batch; a second kernel adds the splits in order. More rows have tiles of 128 x 128 and no splits, or, where the method means
activations to be rounded too, the library's product of 8 bits (rounding.py).

How a code becomes a number of 16 bits without a conversion, which is four times as slow as arithmetic:
    INT4   bits or'ed into the lowest of 1024 (float16) or 128 (bfloat16), which is taken off with the zero
    FP8    read as a signed byte, so that its sign fills the bits above: exponent and fraction are shifted to their places,
           of the signs one is left, and what lies between the exponents' offsets is multiplied
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import Linear, Matrices, Matrix
from quire_engine.ops.packed import STEPS, Kind, Packed
from quire_engine.ops.reference import linear as by_torch
from quire_engine.ops.reference import per_head as per_head_by_torch
from quire_engine.ops.triton.rounding import from_e4m3, rounded_product, rounds_here
from quire_engine.runtime.invariance import Invariance

__all__ = ["linear_by", "pack", "per_head_by"]

FEW = 64  # rows
PROGRAMS = 512  # that a GPU is kept busy with
LEAST_STEPS = 4  # of a split
INT4, INT8, FP8, PLAIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
KINDS = {Kind.INT4: 0, Kind.INT8: 1, Kind.FP8: 2}
KIND_OF_PLAIN = 3


def pack(weight: Tensor | Packed) -> Matrix:
    """Scales of neighbouring outputs are read together: they come to lie side by side. Where there is one for a row, float32."""
    if isinstance(weight, Tensor):
        return weight
    scales = weight.scales.float() if weight.group == weight.width else weight.scales
    zeros = None if weight.zeros is None else weight.zeros.T.contiguous().T
    return replace(weight, scales=scales.T.contiguous().T, zeros=zeros)


def linear_by(invariance: Invariance) -> Linear:
    def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
        if not isinstance(weight, Packed):
            return _alike(x, weight, bias, wide) if invariance.asked else _by_torch(x, weight, bias, wide)
        if weight.order is not None:
            x = x[:, weight.order]
        if invariance.asked:
            return _alike(x, weight, bias, wide)
        if len(x) > FEW and not wide and rounds_here(x, weight):
            return rounded_product(x, weight, bias)
        return _product_of(x.contiguous(), weight, bias, torch.float32 if wide else x.dtype)

    return linear


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, wide: bool) -> Tensor:
    """What is to be wide is not rounded on its way: two experts, or two tokens, must not become alike."""
    if not wide or not x.is_cuda or x.dtype is torch.float32:
        return by_torch(x, weight, bias, wide=wide)
    y = torch.mm(x, weight.T, out_dtype=torch.float32)
    return y if bias is None else y + bias


def per_head_by(invariance: Invariance) -> Callable[[Tensor, Matrices], Tensor]:
    def per_head(x: Tensor, weights: Matrices) -> Tensor:
        if not invariance.asked:
            return per_head_by_torch(x, weights)
        return torch.stack([_alike(x[:, head], weight, None, False) for head, weight in enumerate(weights)], dim=1)

    return per_head


def _alike(x: Tensor, weight: Tensor | Packed, bias: Tensor | None, wide: bool) -> Tensor:
    """Every row as one of FEW, whatever there are."""
    dtype = torch.float32 if wide else x.dtype
    pieces = [_product_of(piece, weight, bias, dtype, block_m=FEW) for piece in x.contiguous().split(FEW)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True, slots=True)
class _Side:
    """A weight, as the kernel takes it."""

    kind: int
    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None
    height: int
    width: int
    group: int
    step: int

    @classmethod
    def of(cls, weight: Tensor | Packed) -> Self:
        if isinstance(weight, Tensor):
            height, width = weight.shape
            step = 128 // weight.itemsize
            return cls(KIND_OF_PLAIN, weight.contiguous(), None, None, height, width, group=width, step=step)
        step = weight.step if weight.kind is Kind.INT4 else min(weight.step, 64)
        return cls(
            KINDS[weight.kind], weight.codes, weight.scales, weight.zeros, weight.height, weight.width, weight.group, step
        )  # fmt: skip


def _product_of(
    x: Tensor, weight: Tensor | Packed, bias: Tensor | None, dtype: torch.dtype, block_m: int | None = None
) -> Tensor:
    """Few rows in a block of so many; None: of as many as they fill."""
    side, rows = _Side.of(weight), len(x)
    few, precise = rows <= FEW, x.dtype is torch.float32
    # Tiles, steps and stages are what fits the registers of 8.0 and the 99 KiB that a program has on 8.9.
    tile = 64 if precise else 128
    block_m, block_n = (block_m or max(16, triton.next_power_of_2(rows)), 64) if few else (tile, tile)
    across, steps = triton.cdiv(side.height, block_n), triton.cdiv(side.width, side.step)
    splits = max(1, min(PROGRAMS // across, steps // LEAST_STEPS)) if few else 1
    each = triton.cdiv(steps, splits)
    splits = triton.cdiv(steps, each)
    y = torch.empty(rows, side.height, dtype=dtype, device=x.device)
    parts = torch.empty(splits, rows, side.height, dtype=torch.float32, device=x.device) if splits > 1 else y
    stages = 4 if few and not precise else 2 if side.step == STEPS[0] else 3
    nothing = x  # an address for what there is not
    _product[(across, triton.cdiv(rows, block_m), splits)](
        x, side.codes,
        nothing if side.scales is None else side.scales,
        nothing if side.zeros is None else side.zeros,
        nothing if bias is None or splits > 1 else bias,
        parts, rows, side.height,
        WIDTH=side.width, GROUP=side.group, EACH=each, STEP=side.step, BLOCK_M=block_m, BLOCK_N=block_n,
        KIND=side.kind, ZEROS=side.zeros is not None, BIAS=bias is not None and splits == 1, FEW=few,
        num_warps=4 if few else 8, num_stages=stages,
    )  # fmt: skip
    if splits > 1:
        grid = (rows, triton.cdiv(side.height, 1024))
        _add_up[grid](
            parts, nothing if bias is None else bias, y, rows, side.height, SPLITS=splits, BIAS=bias is not None
        )
    return y


@triton.jit(do_not_specialize=["rows"])
def _product(
    x_at, codes_at, scales_at, zeros_at, bias_at, y_at, rows, height,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, EACH: tl.constexpr, STEP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    KIND: tl.constexpr, ZEROS: tl.constexpr, BIAS: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = x_at.dtype.element_ty
    SIZE: tl.constexpr = STEP // 2 if KIND == INT4 else STEP  # bytes of a step
    BYTES: tl.constexpr = (WIDTH + STEP - 1) // STEP * SIZE if KIND == INT4 else WIDTH  # of a row
    split = tl.program_id(2)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    own = tl.minimum(n, height - 1).to(tl.int64)  # what is beyond the edge is computed, and not stored
    k = tl.arange(0, SIZE)
    x_at += tl.minimum(m, rows - 1).to(tl.int64)[None, :] * WIDTH
    codes_at += own[:, None] * BYTES
    total = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
    for step in range(split * EACH, tl.minimum(split * EACH + EACH, (WIDTH + STEP - 1) // STEP)):
        group = step * STEP // GROUP
        zero = tl.zeros([BLOCK_N], dtype=tl.int32)
        if ZEROS:
            zero = tl.load(zeros_at + group * height + own).to(tl.int32)
        scale = tl.full([BLOCK_N], 1.0, tl.float32)
        if KIND != PLAIN:
            scale = tl.load(scales_at + group * height + own).to(tl.float32)
        if KIND == INT4 or WIDTH % STEP == 0:
            code = tl.load(codes_at + step * SIZE + k[None, :])
        else:
            code = tl.load(codes_at + step * SIZE + k[None, :], mask=(step * SIZE + k < WIDTH)[None, :], other=0)
        made = tl.zeros([BLOCK_N, BLOCK_M], dtype=tl.float32)
        if FEW or GROUP == WIDTH:  # scales are multiplied with sums: a number for a step, or once
            if KIND == INT4:
                made = _add(made, _nibble(code & 15, zero, dtype), x_at, step * STEP + k, WIDTH, STEP)
                made = _add(made, _nibble(code >> 4, zero, dtype), x_at, step * STEP + SIZE + k, WIDTH, STEP)
            else:
                made = _add(made, _byte(code, zero, KIND, ZEROS, dtype), x_at, step * STEP + k, WIDTH, STEP)
            total += made if GROUP == WIDTH else made * scale[:, None]
        else:  # with weights, which the sum of many rows is worth
            if KIND == INT4:
                low, high = _nibble(code & 15, zero, dtype), _nibble(code >> 4, zero, dtype)
                low, high = (low * scale[:, None]).to(dtype), (high * scale[:, None]).to(dtype)
                total = _add(total, low, x_at, step * STEP + k, WIDTH, STEP)
                total = _add(total, high, x_at, step * STEP + SIZE + k, WIDTH, STEP)
            else:
                whole = (_byte(code, zero, KIND, ZEROS, dtype) * scale[:, None]).to(dtype)
                total = _add(total, whole, x_at, step * STEP + k, WIDTH, STEP)
    if GROUP == WIDTH and KIND != PLAIN:
        total *= tl.load(scales_at + own).to(tl.float32)[:, None]
    if BIAS:
        total += tl.load(bias_at + own)[:, None]
    to = y_at + (split.to(tl.int64) * rows + m[None, :]) * height + n[:, None]
    tl.store(to, total.to(y_at.dtype.element_ty), mask=(n < height)[:, None] & (m < rows)[None, :])


@triton.jit
def _add(total, weight, x_at, k, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """total [BLOCK_N, BLOCK_M] + weight [BLOCK_N, n] x^T [n, BLOCK_M]"""
    if WIDTH % STEP == 0:
        x = tl.load(x_at + k[:, None])
    else:
        x = tl.load(x_at + k[:, None], mask=(k < WIDTH)[:, None], other=0.0)
    return tl.dot(weight, x, total, input_precision="ieee")


@triton.jit
def _nibble(code, zero, dtype: tl.constexpr):
    """A code of four bits, which is a number plus 8, less its zero: exact in each format."""
    if dtype == tl.float16:
        number = (code.to(tl.int16) | 0x6400).to(dtype, bitcast=True) - (zero + 1032).to(dtype)[:, None]
    elif dtype == tl.bfloat16:
        number = (code.to(tl.int16) | 0x4300).to(dtype, bitcast=True) - (zero + 136).to(dtype)[:, None]
    else:
        number = (code.to(tl.int32) - (zero + 8)[:, None]).to(dtype)
    return number


@triton.jit
def _byte(code, zero, KIND: tl.constexpr, ZEROS: tl.constexpr, dtype: tl.constexpr):
    if KIND == PLAIN:
        number = code
    elif KIND == INT8:
        number = code.to(dtype)
        if ZEROS:
            number -= zero.to(dtype)[:, None]
    else:
        number = from_e4m3(code, dtype)
    return number


@triton.jit(do_not_specialize=["rows"])
def _add_up(parts_at, bias_at, y_at, rows, height, SPLITS: tl.constexpr, BIAS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * 1024 + tl.arange(0, 1024)
    there = n < height
    total = tl.zeros([1024], dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        total += tl.load(parts_at + (split * rows + row) * height + n, mask=there, other=0.0)
    if BIAS:
        total += tl.load(bias_at + n, mask=there, other=0.0)
    tl.store(y_at + row * height + n, total.to(y_at.dtype.element_ty), mask=there)
