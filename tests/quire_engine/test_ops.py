"""The kernels of the reference against arithmetic written out by hand; others are compared with the reference."""

import dataclasses
import math

import pytest
import torch

from quire_engine.core.request import RequestId, SamplingParams
from quire_engine.core.step import Chunk, StepPlan
from quire_engine.layers.rotary import rotary_table
from quire_engine.ops import Ops
from quire_engine.ops.reference import reference_ops
from quire_engine.runtime.batch import build_batch

OPS = reference_ops()
CPU = torch.device("cpu")


def chunk(number: int, start: int, length: int, blocks: tuple[int, ...]) -> Chunk:
    return Chunk(
        request_id=RequestId(number), slot=number, start=start, tokens=tuple(range(length)), follows=False, samples=True,
        blocks=blocks, params=SamplingParams(max_tokens=1),
    )  # fmt: skip


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_attention_is_softmax_over_what_lies_before_each_row(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    size, block = 8, 4
    plan = StepPlan(chunks=(chunk(0, 0, 5, (3, 1)), chunk(1, 9, 1, (0, 5, 2)), chunk(2, 3, 6, (4, 6, 7))))
    batch = build_batch(plan, block, CPU)
    cache = (torch.randn(8, block, kv_heads, size), torch.randn(8, block, kv_heads, size))
    query = torch.randn(12, heads, size)

    out = OPS.attention(query, cache, batch, size**-0.5)

    row = 0
    for c in plan.chunks:
        for position in range(c.start, c.end):
            places = [(c.blocks[p // block], p % block) for p in range(position + 1)]
            for head in range(heads):
                group = head * kv_heads // heads
                scores = [float(query[row, head] @ cache[0][b, o, group]) * size**-0.5 for b, o in places]
                weights = torch.softmax(torch.tensor(scores), dim=0)
                expected = sum(w * cache[1][b, o, group] for w, (b, o) in zip(weights, places, strict=True))
                torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-4)
            row += 1


def test_keys_and_values_are_written_where_the_block_table_says() -> None:
    batch = build_batch(StepPlan(chunks=(chunk(0, 3, 3, (2, 0)),)), 4, CPU)
    cache = (torch.zeros(3, 4, 1, 2), torch.zeros(3, 4, 1, 2))
    key = torch.arange(6.0).view(3, 1, 2) + 1

    OPS.write_kv(key, -key, cache, batch.places)

    assert cache[0][2, 3, 0].tolist() == [1, 2]
    assert cache[0][0, :2, 0].tolist() == [[3, 4], [5, 6]]
    assert cache[1][0, 1, 0].tolist() == [-5, -6]
    assert int((cache[0] != 0).sum()) == 6


def test_rotation_turns_each_pair_by_position_times_frequency() -> None:
    size, position, theta = 6, 5, 100.0
    x = torch.randn(1, 2, size)

    out = OPS.rotate(x, rotary_table(size, 8, theta, CPU), torch.tensor([position]))

    for i in range(size // 2):
        angle = position * theta ** (-2 * i / size)
        low, high = x[0, 1, i], x[0, 1, i + size // 2]
        expected = [low * math.cos(angle) - high * math.sin(angle), high * math.cos(angle) + low * math.sin(angle)]
        torch.testing.assert_close(out[0, 1, [i, i + size // 2]], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_rms_norm_scales_to_unit_mean_square() -> None:
    x, weight = torch.randn(3, 8) * 5, torch.rand(8)

    out = OPS.rms_norm(x, weight, 0.0)

    torch.testing.assert_close((out / weight).square().mean(-1), torch.ones(3))


def test_silu_mul_gates_the_right_half_by_the_left() -> None:
    out = OPS.silu_mul(torch.tensor([[0.0, 2.0, 3.0, 5.0]]))

    torch.testing.assert_close(out, torch.tensor([[0.0, 5 * 2 / (1 + math.exp(-2.0))]]))


def test_linear_multiplies_and_adds() -> None:
    out = OPS.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))

    assert out.tolist() == [[11.5]]


def test_every_kernel_has_a_case_here() -> None:
    assert {field.name for field in dataclasses.fields(Ops)} == {
        "linear",
        "rms_norm",
        "rotate",
        "silu_mul",
        "write_kv",
        "attention",
    }
