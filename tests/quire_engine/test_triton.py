"""The kernels for GPUs, without one: their values in Triton's interpreter (conftest.py), and whether they compile.

The interpreter knows no bfloat16, and is slow: few shapes, each with a reason.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.attending import ATTENTION_FORMS, Scene, batch_of, empty_cache, form_of
from fakes.checkpoints import save_case
from fakes.compiling import SHARED_BYTES, faults
from fakes.interpreting import products_know_no_place, scalars_are_numbers
from fakes.kernels import KERNELS
from fakes.logits import logits_of
from fakes.packing import packed_of
from fakes.quantized import save_quantized
from fakes.running import greedy, run
from torch import Tensor

from quire_api import EngineConfig
from quire_engine.build import build_engine
from quire_engine.core.request import TokenParams
from quire_engine.core.step import Placement
from quire_engine.models import ARCHITECTURES, GENERATORS
from quire_engine.models.weights import Weights
from quire_engine.ops import IN_PROMPT, Activation, AttentionForm, Draws
from quire_engine.ops.packed import Kind
from quire_engine.ops.reference import reference_ops
from quire_engine.ops.triton import attend, rounding, triton_ops
from quire_engine.ops.triton.rounding import round_rows
from quire_engine.quant import scheme_of
from quire_engine.runtime.embedder import Embedder
from quire_engine.sampling.sampler import Sampler
from quire_engine.spec import Routing, read_spec

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that are meant

REFERENCE, OURS = reference_ops(), triton_ops()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    scalars_are_numbers(monkeypatch)


@pytest.fixture(params=[torch.float32, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    chosen: torch.dtype = request.param
    return chosen


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within two roundings of the format."""
    step = max(torch.finfo(ours.dtype).eps, 1e-6)
    torch.testing.assert_close(ours, theirs, rtol=2 * step, atol=2 * step * float(theirs.abs().max()))


@pytest.mark.parametrize("width", [1, 300, 1024])
def test_norms(dtype: torch.dtype, width: int) -> None:
    x, residual = torch.randn(2, 5, width).to(dtype)
    weight, bias = torch.randn(2, width)

    assert_close(OURS.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5))
    if width > 1:  # else all is zero
        assert_close(OURS.layer_norm(x, weight, bias, 1e-5), REFERENCE.layer_norm(x, weight, bias, 1e-5))
    expected = REFERENCE.add_rms_norm(x.clone(), residual.clone(), weight, 1e-5)
    for ours, theirs in zip(OURS.add_rms_norm(x, residual, weight, 1e-5), expected, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("activation", Activation)
def test_activations(dtype: torch.dtype, activation: Activation) -> None:
    x = (5 * torch.randn(3, 2500)).to(dtype)

    assert_close(OURS.activate(x, activation), REFERENCE.activate(x, activation))
    assert_close(OURS.gate(x, activation), REFERENCE.gate(x, activation))


@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize(("experts", "chosen"), [(1, 1), (5, 2), (8, 8), (100, 7)])
def test_route(experts: int, chosen: int, renormalised: bool) -> None:
    likings, routing = torch.randn(9, experts), Routing(chosen=chosen, renormalised=renormalised)
    likings[3] = 0.0  # all alike: the first

    choices, shares = OURS.route(likings, routing)

    expected_choices, expected_shares = REFERENCE.route(likings, routing)
    assert torch.equal(choices, expected_choices)
    assert_close(shares, expected_shares)


BY_GROUPS = [
    Routing(chosen=3, renormalised=False, groups=4, chosen_groups=2, scale=2.5),
    Routing(chosen=6, renormalised=True, groups=8, chosen_groups=3, judged_by=2, sigmoid=True, scale=1.5),
    Routing(chosen=2, renormalised=True, groups=1, chosen_groups=1, sigmoid=True),
]


@pytest.mark.parametrize("routing", BY_GROUPS, ids=["the best of a group", "the best two of a group", "no groups"])
@pytest.mark.parametrize("prefers", [False, True])
def test_route_by_groups(routing: Routing, prefers: bool) -> None:
    likings, preference = torch.randn(9, 40), torch.randn(40) / 2 if prefers else None
    likings[3] = 0.0
    likings[4] = torch.nan

    choices, shares = OURS.route(likings, routing, preference)

    numbers = torch.arange(9) != 4
    expected_choices, expected_shares = REFERENCE.route(likings, routing, preference)
    assert torch.equal(choices[numbers], expected_choices[numbers])
    assert_close(shares[numbers], expected_shares[numbers])
    assert len(set(choices[4].tolist()) & set(range(40))) == routing.chosen
    of_groups = {choice // (40 // routing.groups) for choice in choices[0].tolist()}
    assert len(of_groups) <= routing.chosen_groups


def test_a_row_that_is_no_numbers_is_routed_to_experts() -> None:
    """Whatever they make of it: it must not be written where nobody looks."""
    choices, _ = OURS.route(torch.full((1, 6), torch.nan), Routing(chosen=3, renormalised=True))

    assert len(set(choices[0].tolist()) & set(range(6))) == 3


def experts_of(count: int, hidden: int, inner: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    gate_up, down = torch.randn(count, 2 * inner, hidden) / hidden**0.5, torch.randn(count, hidden, inner) / inner**0.5
    return OURS.pack_experts(iter(gate_up.to(dtype)), count), OURS.pack_experts(iter(down.to(dtype)), count)


@pytest.mark.parametrize("activation", [Activation.SILU, Activation.GELU_TANH, Activation.GPT_OSS])
@pytest.mark.parametrize(
    ("tokens", "experts", "chosen", "hidden", "inner"),
    [(1, 4, 2, 64, 32), (3, 7, 3, 100, 33), (130, 3, 2, 48, 130), (520, 2, 2, 16, 16)],
    ids=["one", "odd", "more than a tile", "more than are counted at once"],
)
def test_mix(
    dtype: torch.dtype, tokens: int, experts: int, chosen: int, hidden: int, inner: int, activation: Activation
) -> None:
    x, matrices = torch.randn(tokens, hidden).to(dtype), experts_of(experts, hidden, inner, dtype)
    routed = REFERENCE.route(torch.randn(tokens, experts), Routing(chosen=chosen, renormalised=True))
    biases = (
        (torch.randn(experts, 2 * inner), torch.randn(experts, hidden)) if activation is Activation.GPT_OSS else None
    )

    ours, theirs = (ops.mix(x, routed, *matrices, activation, biases) for ops in (OURS, REFERENCE))

    close = 4e-3 if dtype is torch.float16 else 1e-5
    torch.testing.assert_close(ours, theirs, rtol=close, atol=close)


def test_what_experts_make_of_a_row_does_not_depend_on_its_company() -> None:
    torch.manual_seed(0)
    x, matrices = torch.randn(90, 64).half(), experts_of(3, 64, 48, torch.float16)
    choices, shares = REFERENCE.route(torch.randn(90, 3), Routing(chosen=2, renormalised=True))

    together = OURS.mix(x, (choices, shares), *matrices, Activation.SILU)

    for row in (slice(0, 1), slice(77, 90)):
        some = OURS.mix(x[row], (choices[row], shares[row]), *matrices, Activation.SILU)
        assert torch.equal(some, together[row])


@pytest.mark.parametrize("width", [1, 64, 5000])
def test_best(width: int) -> None:
    logits = torch.randn(12, width)
    logits[3] = -torch.inf
    logits[4, width // 2] = torch.nan
    logits[5, -1] = torch.inf
    logits[6] = 0.0  # all alike: the first
    logits[7, : width // 2] = -torch.inf

    assert torch.equal(OURS.best(logits), REFERENCE.best(logits))


@pytest.mark.parametrize("width", [1, 31, 64, 5001])
def test_rule_out(width: int) -> None:
    rows = torch.tensor([4, 0, 2])
    allowed = torch.randint(-(2**31), 2**31, (3, -(-width // 32)), dtype=torch.int32)
    logits = torch.randn(6, width)
    expected = logits.clone()
    REFERENCE.rule_out(expected, rows, allowed)

    OURS.rule_out(logits, rows, allowed)

    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    "form",
    [
        form_of(4, 2, 64),
        form_of(3, 1, 48, rotary=torch.randn(60, 32)),
        form_of(2, 2, 10, rotary=torch.randn(60, 10), q_norm=torch.randn(10), k_norm=torch.randn(10)),
        form_of(2, 1, 32, q_norm=torch.randn(32)),
        form_of(5, 1, 40, rotary=torch.randn(60, 8), latent=32),
    ],
    ids=["as they are", "part of a head turns", "odd, normed and turned", "queries alone are normed", "latent"],
)
def test_store_kv(dtype: torch.dtype, form: AttentionForm) -> None:
    batch = batch_of(8, ([3, 1], 5, 7), ([2], 0, 1), ([4, 5, 6, 0, 9], 33, 6))
    qkv = torch.randn(14, form.given_heads * form.head_dim).to(dtype)
    ours, theirs = empty_cache(10, 8, form, dtype), empty_cache(10, 8, form, dtype)

    queries = OURS.store_kv(qkv, form, ours, batch)
    exact = REFERENCE.store_kv(qkv.float(), form, empty_cache(10, 8, form, torch.float32), batch)
    REFERENCE.store_kv(qkv, form, theirs, batch)

    assert_close(queries, exact.to(dtype))
    torch.testing.assert_close(ours[0], theirs[0], rtol=4e-3, atol=4e-3)  # the reference rounds between norm and turn
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("rows", [1, 5, 70], ids=["one row", "few rows", "many rows"])
@pytest.mark.parametrize(
    ("kind", "height", "width", "group", "extra"),
    [
        (Kind.INT4, 70, 512, 128, "zeros"),
        (Kind.INT4, 33, 192, 64, "bias"),
        (Kind.INT4, 16, 96, 32, "order"),
        (Kind.INT4, 5, 40, 40, "zeros"),
        (Kind.INT8, 33, 192, 32, "zeros"),
        (Kind.INT8, 6, 40, 40, "bias"),
        (Kind.FP8, 33, 1024, 128, "bias"),
        (Kind.FP8, 20, 72, 72, "order"),
    ],
    ids=[
        "split", "groups of 64", "groups of 32, in an order", "a cut step", "bytes with zeros", "cut bytes", "e4m3 in blocks",
        "e4m3 in an order",
    ],
)  # fmt: skip
def test_products_with_few_bits(
    dtype: torch.dtype, kind: Kind, height: int, width: int, group: int, extra: str, rows: int
) -> None:
    weight = packed_of(kind, height, width, group, zeros=extra == "zeros", ordered=extra == "order")
    x, bias = torch.randn(rows, width).to(dtype), torch.randn(height) if extra == "bias" else None

    ours = OURS.linear(x, OURS.pack(weight), bias)
    wide = OURS.linear(x, OURS.pack(weight), bias, wide=True)
    theirs = REFERENCE.linear(x.float(), REFERENCE.pack(weight), bias)

    error = (
        2e-6 if dtype is torch.float32 else 2e-3
    )  # of the largest: weights of 16 bits are rounded where rows are many
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < error
    assert float((wide - theirs).abs().max() / theirs.abs().max()) < error
    assert wide.dtype is torch.float32


@pytest.mark.parametrize("alike", [False, True])
def test_products_per_head(dtype: torch.dtype, alike: bool) -> None:
    x, weights = torch.randn(3, 5, 48).to(dtype), torch.randn(5, 33, 48).to(dtype)
    assert OURS.invariance is not None

    OURS.invariance.asked = alike
    ours = OURS.per_head(x, OURS.pack_experts(iter(weights), 5))
    OURS.invariance.asked = False

    theirs = torch.einsum("thi,hoi->tho", x.float(), weights.float())
    torch.testing.assert_close(ours.float(), theirs, rtol=4e-3, atol=2e-2)
    torch.testing.assert_close(ours, REFERENCE.per_head(x, weights), rtol=4e-3, atol=2e-2)


def test_a_product_with_few_bits_does_not_depend_on_the_rows_beside_it(dtype: torch.dtype) -> None:
    """To the bit, as long as they are few."""
    weight, x = OURS.pack(packed_of(Kind.INT4, 40, 512, 128)), torch.randn(16, 512).to(dtype)

    together = OURS.linear(x, weight)

    assert torch.equal(torch.cat([OURS.linear(x[:3], weight), OURS.linear(x[3:4], weight)]), together[:4])


@pytest.mark.parametrize("kind", [Kind.INT8, Kind.FP8])
def test_activations_are_rounded_row_by_row(dtype: torch.dtype, kind: Kind) -> None:
    x = (torch.randn(4, 5000) * torch.tensor([[1.0], [100.0], [0.01], [0.0]])).to(dtype)
    largest = 127.0 if kind is Kind.INT8 else 448.0

    codes, scales = round_rows(x, kind)

    expected = x.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
    torch.testing.assert_close(scales, expected, rtol=1e-6, atol=0)
    inner = x.float() / scales
    exact = (inner + 0.5).floor() if kind is Kind.INT8 else inner.to(torch.float8_e4m3fn).float()
    assert torch.equal(codes.float(), exact)


@pytest.mark.parametrize("at_once", [1 << 25, 48 * 40], ids=["at once", "in pieces"])
def test_many_rows_by_eight_bits_are_the_product_of_what_was_rounded(
    dtype: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "AT_ONCE", at_once)
    weight, bias = packed_of(Kind.INT8, 48, 64, 64, rounds=True), torch.randn(48)
    x = torch.randn(80, 64).to(dtype)
    x[3, 7] = torch.nan

    ours = OURS.linear(x, OURS.pack(weight), bias)

    codes, scales = round_rows(x, Kind.INT8)
    theirs = REFERENCE.linear(codes.float() * scales, REFERENCE.pack(weight), bias)
    assert bool(ours[3].isnan().all())
    whole = torch.arange(80) != 3
    assert_close(ours[whole], theirs[whole].to(dtype))
    plain = REFERENCE.linear(x.float(), REFERENCE.pack(weight), bias)[whole]
    assert 0 < float((ours[whole] - plain).abs().max() / plain.abs().max()) < 0.02


@pytest.mark.parametrize("method", ["awq", "gptq-4-desc-act", "fp8-channel"])
def test_a_model_in_few_bits_has_the_references_logits(method: str, tmp_path: Path) -> None:
    save_quantized(method, tmp_path)
    spec = read_spec(tmp_path)
    logits = []

    for ops in (OURS, REFERENCE):
        with Weights(tmp_path, torch.float32, CPU, scheme_of(spec.quantization), ops.keeps) as weights:
            model = GENERATORS[spec.architecture](spec, weights, ops, CPU)
        logits.append(logits_of(spec, model, [3, 10, 17]))

    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4 * float(logits[1].abs().max()))


PIECES = [(0, 100, 150), (1, 0, 1), (2, 76, 77)]  # a piece of a prompt, and single tokens: in one split, and in some
SINGLE = [(0, 149, 150), (1, 0, 1), (2, 63, 64)]


@pytest.mark.parametrize(
    ("which", "chunks", "split"),
    [
        ("wide group", PIECES, 512),
        ("wide group", SINGLE, 64),
        ("odd", PIECES, 64),
        ("window", PIECES, 64),
        ("window", SINGLE, 64),
        ("soft cap", PIECES, 64),
        ("slopes and a soft cap", PIECES, 64),
        ("slopes", SINGLE, 64),
        ("sinks", SINGLE, 64),
        ("sinks and a window", PIECES, 64),
        ("latent", PIECES, 64),
        ("latent, odd", SINGLE, 64),
        ("latent, in a window", PIECES, 64),
        ("latent, wide", [(0, 140, 150), (1, 0, 1), (2, 76, 77)], 64),
        ("both ways by slopes", PIECES, 64),
        ("both ways in a window", PIECES, 64),
    ],
)
def test_attention(monkeypatch: pytest.MonkeyPatch, which: str, chunks: list[tuple[int, int, int]], split: int) -> None:
    monkeypatch.setattr(attend, "SPLIT", split)
    torch.manual_seed(0)
    scene = Scene(ATTENTION_FORMS[which], 16)

    ours, theirs = (scene.attend(ops, torch.float32, *chunks) for ops in (OURS, REFERENCE))

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunks", [PIECES, SINGLE])
def test_a_cache_of_eight_bits(
    dtype: torch.dtype, chunks: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes, halves and what is too large among them, and what is read from them."""
    monkeypatch.setattr(attend, "SPLIT", 64)
    scene = Scene(form_of(4, 2, 32), 16, torch.float8_e4m3fn)
    scene.qkv[0][:, :64] *= 1e3
    scene.qkv[2][:, 64:] *= 1e-3
    scene.qkv[0][3, -1] = torch.nan  # in a value, which all that follows looks at
    filled = [scene.filled(ops, dtype) for ops in (OURS, REFERENCE)]

    ours, theirs = (
        scene.attend(ops, dtype, *chunks, filled=each) for ops, each in zip((OURS, REFERENCE), filled, strict=True)
    )

    for mine, other in zip(*(cache for _, cache in filled), strict=True):
        assert torch.equal(mine.view(torch.uint8), other.view(torch.uint8))
    assert theirs.isnan().any()
    whole = float(theirs.nan_to_num().abs().max())
    torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=4e-3 * whole, equal_nan=True)


def test_a_latent_cache_of_eight_bits() -> None:
    """Whose values are its keys, rounded once."""
    scene = Scene(form_of(6, 1, 48, latent=32), 16, torch.float8_e4m3fn)
    filled = scene.filled(REFERENCE, torch.float32)

    ours, theirs = (scene.attend(ops, torch.float32, *PIECES, filled=filled) for ops in (OURS, REFERENCE))

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_of_a_row_does_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: alone, and beside a longer context, which has more splits, and a prompt."""
    monkeypatch.setattr(attend, "SPLIT", 64)
    torch.manual_seed(0)
    scene = Scene(form_of(4, 2, 32), 16)

    alone = scene.attend(OURS, torch.float16, (2, 76, 77))

    assert torch.equal(scene.attend(OURS, torch.float16, (0, 149, 150), (2, 76, 77))[1:], alone)
    assert torch.equal(scene.attend(OURS, torch.float16, (0, 3, 150), (1, 0, 1), (2, 76, 77))[-1:], alone)


@pytest.fixture
def alike(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a step with a request that wants the same bits in any batch."""
    products_know_no_place(monkeypatch)
    assert OURS.invariance is not None
    OURS.invariance.asked = True
    yield
    OURS.invariance.asked = False


@pytest.mark.parametrize("kind", [None, Kind.INT4, Kind.INT8])
def test_a_row_of_a_product_has_the_same_bits_in_any_batch(dtype: torch.dtype, kind: Kind | None, alike: None) -> None:
    height, width = 100, 160
    made = torch.randn(height, width).to(dtype) if kind is None else packed_of(kind, height, width, 32)
    weight, bias, x = OURS.pack(made), torch.randn(height), torch.randn(130, width).to(dtype)

    together = OURS.linear(x, weight, bias)

    assert_close(together, REFERENCE.linear(x, REFERENCE.pack(made), bias))
    for rows in (slice(0, 1), slice(63, 66), slice(129, 130)):
        assert torch.equal(OURS.linear(x[rows], weight, bias), together[rows])
    assert OURS.linear(x[:3], weight, wide=True).dtype is torch.float32


@pytest.mark.parametrize("form", [ATTENTION_FORMS["grouped"], form_of(4, 2, 32, window=90)], ids=["whole", "window"])
def test_attention_of_a_token_has_the_same_bits_in_a_piece_of_a_prompt(
    dtype: torch.dtype, form: AttentionForm, alike: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attend, "SPLIT", 64)
    scene = Scene(form, 16)
    filled = scene.filled(REFERENCE, dtype)

    whole, single, other, both, piece = (
        scene.attend(OURS, dtype, *chunks, filled=filled)
        for chunks in (
            [(0, 100, 150)], [(0, 149, 150)], [(1, 0, 1)], [(0, 149, 150), (1, 0, 1)], [(0, 100, 117)]
        )
    )  # fmt: skip

    assert_close(whole, scene.attend(REFERENCE, dtype, (0, 100, 150), filled=filled))
    assert torch.equal(single, whole[-1:])
    assert torch.equal(both, torch.cat((single, other)))
    assert torch.equal(piece, whole[:17])


def test_a_request_that_asks_gets_the_same_bits_alone_and_among_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole engine: its prompt in other pieces, and beside others, who need not have asked."""
    products_know_no_place(monkeypatch)
    save_case("llama", tmp_path)

    def outcome(number: int, budget: int, *others: int) -> tuple[list[int], list[Any]]:
        config = EngineConfig(
            model=str(tmp_path), device="cpu", dtype="float32", kv_cache_gib=0.001, max_num_seqs=4, max_num_batched_tokens=budget,
            enforce_eager=True,
        )  # fmt: skip
        built = build_engine(config, ops=triton_ops(), with_tokenizer=False)
        asking = greedy(number, tuple(range(5, 24)), 3, logprobs=2, batch_invariant=True)
        found = run(built.engine, [greedy(other, (7, 9) * other, 4, logprobs=2) for other in others] + [asking])
        return found[number].tokens, found[number].logprobs

    alone = outcome(1, 64)

    assert outcome(1, 9, 2, 3) == alone


def test_penalise() -> None:
    logits, seen = torch.randn(4, 5000), torch.randint(0, 3, (6, 5000), dtype=torch.int32)
    seen[:, ::7] |= IN_PROMPT
    rows, slots = torch.tensor([3, 0, 2]), torch.tensor([1, 5, 0])
    strength = torch.tensor([[1.3, 0.4, 0.7], [0.7, -1.5, 0.0], [1.0, 0.0, 2.0]])
    ours, theirs = logits.clone(), logits.clone()

    OURS.penalise(ours, rows, seen, slots, strength)
    REFERENCE.penalise(theirs, rows, seen, slots, strength)

    assert torch.equal(ours, theirs)
    assert torch.equal(ours[1], logits[1])


HOW = [  # temperature, min-p, top-k, top-p
    (1.0, 0.0, 0, 1.0), (0.3, 0.0, 0, 1.0), (2.0, 0.05, 0, 1.0), (1.0, 0.0, 1, 1.0), (1.7, 0.0, 20, 1.0),
    (1.0, 0.0, 0, 0.9), (1.0, 0.3, 0, 0.5), (1.0, 0.0, 0, 1e-9), (0.6, 0.0, 20, 0.95), (1.5, 0.2, 50, 0.6),
    (1.0, 0.0, 3, 0.01), (3.0, 0.0, 45, 0.7),
]  # fmt: skip


def draws_of(rows: list[int], seed: int) -> Draws:
    """All of HOW, one after the other."""
    how = np.array([HOW[i % len(HOW)] for i in range(len(rows))])
    with np.errstate(divide="ignore"):
        return Draws(
            rows=np.array(rows),
            temperature=how[:, 0].astype(np.float32),
            log_min_p=np.log(how[:, 1].astype(np.float32)),
            top_k=how[:, 2].astype(np.int64),
            top_p=how[:, 3].copy(),
            words=np.random.default_rng(seed).integers(-(2**31), 2**31, len(rows)).astype(np.int32),
        )


@pytest.mark.parametrize(
    "logits",
    [
        2 * torch.randn(len(HOW), 1000, generator=torch.Generator().manual_seed(0)),
        0.1 * torch.randn(len(HOW), 9000, generator=torch.Generator().manual_seed(1)),
        torch.randn(len(HOW), 150, generator=torch.Generator().manual_seed(2)).round(),
        torch.zeros(len(HOW), 6000),
        torch.full((len(HOW), 50), -torch.inf).index_fill(1, torch.tensor([7, 30]), -2.0),
    ],
    ids=["usual", "flat", "ties", "all alike, more than are listed", "two are left"],
)
def test_draw(logits: Tensor) -> None:
    rows = [*range(len(HOW) - 1, -1, -1)]

    for seed in range(3):
        draws = draws_of(rows, seed)
        assert torch.equal(OURS.draw(logits, draws), REFERENCE.draw(logits, draws))


def test_a_draw_from_what_is_no_numbers_ends() -> None:
    logits = torch.randn(len(HOW), 300)
    logits[:, 7] = torch.nan
    logits[:, 8] = torch.inf

    for hopeless in (logits, torch.full_like(logits, torch.nan), torch.full_like(logits, -torch.inf)):
        tokens = OURS.draw(hopeless, draws_of([*range(len(HOW))], 0))
        assert tokens.min() >= 0
        assert tokens.max() < 300


@pytest.mark.parametrize("top", [0, 1, 5])
@pytest.mark.parametrize("width", [6, 5000])
def test_score(width: int, top: int) -> None:
    logits = torch.randn(4, width).mul(2).round()  # with ties
    logits[1, 1:4] = -torch.inf
    tokens = torch.tensor([3, 0, -1, width - 1])

    ours, theirs = (ops.score(logits, tokens, top) for ops in (OURS, REFERENCE))

    torch.testing.assert_close(ours[0][[0, 1, 3]], theirs[0][[0, 1, 3]])
    assert torch.equal(ours[1][[0, 1, 3]], theirs[1][[0, 1, 3]])
    assert ours[1][2, 0] == -1


def test_rows_of_logits_may_lie_apart() -> None:
    """As those of a wider matrix do."""
    wide = torch.randn(len(HOW), 170)
    apart, near = wide[:, :150], wide[:, :150].clone()
    draws, tokens = draws_of([*range(len(HOW))], 0), torch.arange(len(HOW))
    rows, seen, strength = (
        torch.tensor([3, 0]),
        torch.ones(1, 150, dtype=torch.int32),
        torch.tensor([[1.3, 0.4, 0.7]] * 2),
    )

    for logits in (apart, near):
        OURS.penalise(logits, rows, seen, torch.tensor([0, 0]), strength)

    assert torch.equal(apart, near)
    assert torch.equal(OURS.draw(apart, draws), OURS.draw(near, draws))
    assert torch.equal(OURS.score(apart, tokens, 2)[1], OURS.score(near, tokens, 2)[1])


def test_a_model_with_experts_is_the_same_by_both_tables(tmp_path: Path) -> None:
    """From the checkpoint on, and with a layer that has none."""
    save_case("qwen3-moe-mixed", tmp_path)
    spec, cpu = read_spec(tmp_path), torch.device("cpu")
    embeddings = []
    for ops in (OURS, REFERENCE):
        with Weights(tmp_path, torch.float32, cpu) as weights:
            model = ARCHITECTURES[spec.architecture](spec, weights, ops, cpu)
        embedder = Embedder(model, spec, dtype=torch.float32, block_size=16, max_tokens=64, device=cpu)
        embeddings.append(embedder.embed([[5, 9, 100, 3, 77], [64]]))

    torch.testing.assert_close(*embeddings, rtol=1e-4, atol=1e-5)


def test_a_sampler_chooses_the_same_by_both_tables() -> None:
    """Over some steps, in which penalties grow; two of the sequences are greedy, and some want log probabilities."""
    vocabulary = 300
    every = [
        TokenParams(max_tokens=9, temperature=0.0),
        TokenParams(max_tokens=9, temperature=0.0, repetition_penalty=1.5, logprobs=3),
        TokenParams(max_tokens=9, temperature=1.5, seed=1, frequency_penalty=0.7, logprobs=0),
        TokenParams(max_tokens=9, temperature=0.8, seed=2, top_k=20, top_p=0.8, presence_penalty=0.5, logprobs=5),
        TokenParams(max_tokens=9, temperature=1.0, seed=3, min_p=0.1),
    ]
    samplers = [Sampler(vocabulary, len(every), torch.device("cpu"), ops) for ops in (OURS, REFERENCE)]
    for sampler in samplers:
        for slot, params in enumerate(every):
            sampler.place(Placement(slot=slot, tokens=[1, 2], num_prompt=2, blocks=[], params=params))

    for step in range(4):
        logits = 2 * torch.randn(len(every), vocabulary, generator=torch.Generator().manual_seed(0))
        ours, theirs = (
            sampler.sample(logits.clone(), [*range(len(every))], [2 + step] * len(every)) for sampler in samplers
        )
        assert torch.equal(ours.tokens, theirs.tokens)
        assert ours.logprobs().keys() == theirs.logprobs().keys() == {1, 2, 3}
        for row, score in ours.logprobs().items():
            expected = theirs.logprobs()[row]
            assert (score.token, score.rank) == (expected.token, expected.rank)
            assert score.logprob == pytest.approx(expected.logprob, abs=1e-5)
            assert [token for token, _ in score.top] == [token for token, _ in expected.top]


def compiled(capability: int, dtype: str) -> Iterator[dict[str, Any]]:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), os.environ.get("PYTHONPATH", "")))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "fakes.compiling", str(capability), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    yield from map(json.loads, done.stdout.splitlines())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("capability", [min(SHARED_BYTES), max(SHARED_BYTES)])
def test_every_kernel_compiles_for_the_oldest_and_the_newest_architecture(capability: int) -> None:
    """Fits its shared memory, and keeps what it works with in registers. `make compile-kernels` does all, in all formats."""
    kernels = list(compiled(capability, "bfloat16"))

    assert {each["kernel"] for each in kernels} == set().union(*KERNELS.values())
    assert [(each, why) for each in kernels for why in faults(each, capability, torch.bfloat16)] == []


def test_what_does_not_fit_is_a_fault() -> None:
    fits = {"shared": 99 << 10, "stack": 0, "variant": "DIM=128 BLOCK=128"}

    assert faults(fits, 89, torch.bfloat16) == []
    assert "bytes of shared memory" in faults(fits | {"shared": (99 << 10) + 1}, 89, torch.bfloat16)[0]
    assert "are spilled" in faults(fits | {"stack": 8}, 89, torch.float16)[0]
    assert faults(fits | {"stack": 8}, 89, torch.float32) == []
    assert faults(fits | {"stack": 8, "variant": "DIM=256 BLOCK=256"}, 89, torch.float16) == []
