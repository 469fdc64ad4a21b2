"""Products of 8 bits by the library, for many rows: activations are rounded to the kind of the weights, row by row.

    x[m, k] ~ code[m, k] * scale[m]     scale[m] = the largest of the row / the largest code

INT8   on every GPU: torch's product gives whole numbers; `_rescale` makes of them what was meant.
FP8    from compute capability 8.9 on, for bfloat16 and one scale a row: the library multiplies with the scales of both sides.
Anything else (blocks of a row with scales of their own, float16 by FP8, 8.0) keeps its activations, and its weights
become numbers in registers (products.py): right, and no faster than 16 bits where reading weights is not what takes the time.

Grids: `_round` a program a row, which it reads twice; `_rescale` a program for each BLOCK numbers of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops.packed import Kind, Packed

__all__ = ["from_e4m3", "round_rows", "rounded_product", "rounds_here", "to_e4m3"]

BLOCK = 1024
FORMATS = {Kind.INT8: torch.int8, Kind.FP8: torch.float8_e4m3fn}
LARGEST = {Kind.INT8: 127.0, Kind.FP8: 448.0}
AT_ONCE = 1 << 25  # whole numbers of a product, which bounds what it takes beside its result
WIDER = tl.constexpr(2.0**120)  # between the offsets of exponents of 8 bits and of 4
ALIGNED = 16  # what the library's sides have to be multiples of


def rounds_here(x: Tensor, weight: Packed) -> bool:
    """Whether this product may be, and can be, one of 8 bits on this device."""
    if not weight.rounds or weight.zeros is not None or weight.group < weight.width:
        return False
    if weight.width % ALIGNED or weight.height % ALIGNED:
        return False
    if weight.kind is Kind.INT8:
        return True
    has_fp8 = x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9)
    return weight.kind is Kind.FP8 and has_fp8 and x.dtype is torch.bfloat16


def rounded_product(x: Tensor, weight: Packed, bias: Tensor | None) -> Tensor:
    """Scales of the weight are float32."""
    if weight.kind is Kind.FP8:
        codes, scales = round_rows(x, weight.kind)
        return torch._scaled_mm(
            codes,
            weight.codes.view(torch.float8_e4m3fn).T,
            scale_a=scales,
            scale_b=weight.scales.T,
            bias=None if bias is None else bias.to(x.dtype),
            out_dtype=x.dtype,
        )
    rows, height = len(x), weight.height
    y = torch.empty(rows, height, dtype=x.dtype, device=x.device)
    pieces = triton.cdiv(rows * height, AT_ONCE)
    for part, to in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
        codes, scales = round_rows(part, weight.kind)
        whole = torch._int_mm(codes, weight.codes.T)
        given = scales if bias is None else bias  # an address, where there is none
        grid = (len(part), triton.cdiv(height, BLOCK))
        _rescale[grid](whole, scales, weight.scales, given, to, height, BIAS=bias is not None, BLOCK=BLOCK)
    return y


def round_rows(x: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """x [T, n] -> its codes [T, n], and scales [T, 1] float32"""
    x = x.contiguous()
    rows, width = x.shape
    codes = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    _round[(rows,)](
        x, codes, scales, width, LARGEST=LARGEST[kind], WHOLE=kind is Kind.INT8, BLOCK=4 * BLOCK, num_warps=8
    )
    return codes.view(FORMATS[kind]), scales


@triton.jit
def _round(x_at, codes_at, scales_at, width, LARGEST: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_at + row * width + column, mask=column < width, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.where(x == x, tl.abs(x), float("inf")))  # a row with a NaN becomes NaN
    scale = tl.maximum(tl.max(largest, 0), 1e-12) / LARGEST
    tl.store(scales_at + row, scale)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_at + row * width + column, mask=column < width, other=0.0).to(tl.float32) / scale
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
        code = tl.floor(x + 0.5).to(tl.int32) if WHOLE else to_e4m3(x)
        tl.store(codes_at + row * width + column, code.to(tl.int8), mask=column < width)


@triton.jit
def from_e4m3(code, dtype: tl.constexpr):
    """Codes, as signed bytes -> their numbers, exact in each format; of what is no number, something (products.py)."""
    if dtype == tl.float16:
        number = ((code.to(tl.int16) << 7) & -0x4080).to(dtype, bitcast=True) * 256.0
    elif dtype == tl.bfloat16:
        number = ((code.to(tl.int16) << 4) & -0x7810).to(dtype, bitcast=True) * WIDER
    else:
        number = ((code.to(tl.int32) << 20) & -0x78100000).to(dtype, bitcast=True) * WIDER
    return number


@triton.jit
def to_e4m3(x):
    """The bits of the nearest, of two the even one. By hand: Triton's interpreter loses a carry where it converts."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)  # the exponents' offsets are 127 and 7
    low = (tl.abs(x) + 24576.0).to(tl.int32, bitcast=True) - 0x46C00000  # steps of 2^-9, those of floats at 24576
    return tl.where(size < 0x3C800000, low, normal) | ((bits >> 24) & 128)  # below 2^-6, where e4m3 has no exponent


@triton.jit
def _rescale(whole_at, rows_at, columns_at, bias_at, y_at, height, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < height
    y = tl.load(whole_at + row * height + column, mask=there, other=0).to(tl.float32) * tl.load(rows_at + row)
    y *= tl.load(columns_at + column, mask=there, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias_at + column, mask=there, other=0.0)
    tl.store(y_at + row * height + column, y.to(y_at.dtype.element_ty), mask=there)
