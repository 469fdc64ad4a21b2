"""What is computed row by row, or number by number: norms and activations. Grid: a program a row, whole in registers;
activations a program for each BLOCK numbers of one. Sums and functions are float32, results are rounded once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import Activation

__all__ = ["KINDS", "activate", "activated", "add_rms_norm", "beside", "gate", "layer_norm", "rms_norm", "tanh"]

BLOCK = 1024
SILU, GELU, GELU_TANH, GPT_OSS = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
KINDS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.GPT_OSS: 3}
LIMIT, STEEPNESS = tl.constexpr(7.0), tl.constexpr(1.702)  # of gpt-oss


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    _norm[(len(x),)](x, x, weight, weight, y, epsilon, **_shape(x), ADD=False, CENTER=False)
    return y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    x, residual = x.contiguous(), residual.contiguous()
    _norm[(len(x),)](x, residual, weight, weight, x, epsilon, **_shape(x), ADD=True, CENTER=False)
    return x, residual


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    _norm[(len(x),)](x, x, weight, bias, y, epsilon, **_shape(x), ADD=False, CENTER=True)
    return y


def activate(x: Tensor, activation: Activation) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    rows, width = x.shape
    _activate[(rows, triton.cdiv(width, BLOCK))](x, y, width, width, KIND=KINDS[activation], GATED=False, BLOCK=BLOCK)
    return y


def gate(gate_up: Tensor, activation: Activation) -> Tensor:
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = gate_up.new_empty(rows, width)
    grid = (rows, triton.cdiv(width, BLOCK))
    _activate[grid](gate_up, y, width, 2 * width, KIND=KINDS[activation], GATED=True, BLOCK=BLOCK)
    return y


def _shape(x: Tensor) -> dict[str, int]:
    width = x.shape[1]
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 16)}


@triton.jit
def _norm(
    x_at, residual_at, weight_at, bias_at, y_at, epsilon,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr, CENTER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    there = column < WIDTH
    stored = tl.load(x_at + row + column, mask=there, other=0.0)
    if ADD:
        stored = stored + tl.load(residual_at + row + column, mask=there, other=0.0)
        tl.store(residual_at + row + column, stored, mask=there)
    x = stored.to(tl.float32)
    if CENTER:
        x = tl.where(there, x - tl.sum(x, 0) / WIDTH, 0.0)
    x = x * (1 / tl.sqrt(tl.sum(x * x, 0) / WIDTH + epsilon))
    y = tl.load(weight_at + column, mask=there, other=0.0) * x
    if CENTER:
        y += tl.load(bias_at + column, mask=there, other=0.0)
    tl.store(y_at + row + column, y.to(y_at.dtype.element_ty), mask=there)


@triton.jit
def tanh(x):
    return 2 / (1 + tl.exp(-2 * x)) - 1


@triton.jit
def activated(x, KIND: tl.constexpr):
    if KIND == SILU:
        return x / (1 + tl.exp(-x))
    if KIND == GELU:
        return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    if KIND == GPT_OSS:
        low = tl.where(x > LIMIT, LIMIT, x)  # what is no number stays that
        return low / (1 + tl.exp(-STEEPNESS * low))
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))


@triton.jit
def beside(up, KIND: tl.constexpr):
    """What a gate is multiplied with."""
    if KIND == GPT_OSS:
        up = tl.where(up > LIMIT, LIMIT, tl.where(up < -LIMIT, -LIMIT, up)) + 1
    return up


@triton.jit
def _activate(x_at, y_at, width, stride, KIND: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    y = activated(tl.load(x_at + row * stride + column, mask=there, other=0.0).to(tl.float32), KIND)
    if GATED:
        up = tl.load(x_at + row * stride + width + column, mask=there, other=0.0)
        y = y.to(up.dtype).to(tl.float32) * beside(up.to(tl.float32), KIND).to(up.dtype).to(tl.float32)
    tl.store(y_at + row * width + column, y.to(y_at.dtype.element_ty), mask=there)
