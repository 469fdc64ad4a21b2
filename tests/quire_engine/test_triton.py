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

import pytest
import torch
from fakes.attending import ATTENTION_FORMS, Scene, batch_of, empty_cache, form_of
from fakes.compiling import SHARED_BYTES, faults
from fakes.logits import logits_of
from fakes.packing import packed_of
from fakes.quantized import save_quantized
from torch import Tensor
from triton.runtime import interpreter

from quire_engine.models import GENERATORS
from quire_engine.models.weights import Weights
from quire_engine.ops import Activation, AttentionForm
from quire_engine.ops.packed import Kind
from quire_engine.ops.reference import reference_ops
from quire_engine.ops.triton import attend, rounding, triton_ops
from quire_engine.ops.triton.rounding import round_rows
from quire_engine.quant import scheme_of
from quire_engine.spec import read_spec

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities that are meant

REFERENCE, OURS = reference_ops(), triton_ops()
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _scalars_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes a loop's bounds of arrays with one number, which numpy 2.4 does not take for a number any more."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


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


@pytest.mark.parametrize("width", [1, 64, 5000])
def test_best(width: int) -> None:
    logits = torch.randn(12, width)
    logits[3] = -torch.inf
    logits[4, width // 2] = torch.nan
    logits[5, -1] = torch.inf
    logits[6] = 0.0  # all alike: the first
    logits[7, : width // 2] = -torch.inf

    assert torch.equal(OURS.best(logits), REFERENCE.best(logits))


@pytest.mark.parametrize(
    "form",
    [
        form_of(4, 2, 64),
        form_of(3, 1, 48, rotary=torch.randn(60, 32)),
        form_of(2, 2, 10, rotary=torch.randn(60, 10), q_norm=torch.randn(10), k_norm=torch.randn(10)),
        form_of(2, 1, 32, q_norm=torch.randn(32)),
    ],
    ids=["as they are", "part of a head turns", "odd, normed and turned", "queries alone are normed"],
)
def test_store_kv(dtype: torch.dtype, form: AttentionForm) -> None:
    batch = batch_of(8, ([3, 1], 5, 7), ([2], 0, 1), ([4, 5, 6, 0, 9], 33, 6))
    qkv = torch.randn(14, (form.heads + 2 * form.kv_heads) * form.head_dim).to(dtype)
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
        ("both ways in a window", PIECES, 64),
    ],
)
def test_attention(monkeypatch: pytest.MonkeyPatch, which: str, chunks: list[tuple[int, int, int]], split: int) -> None:
    monkeypatch.setattr(attend, "SPLIT", split)
    torch.manual_seed(0)
    scene = Scene(ATTENTION_FORMS[which], 16)

    ours, theirs = (scene.attend(ops, torch.float32, *chunks) for ops in (OURS, REFERENCE))

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_of_a_row_does_not_depend_on_its_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: alone, and beside a longer context, which has more splits, and a prompt."""
    monkeypatch.setattr(attend, "SPLIT", 64)
    torch.manual_seed(0)
    scene = Scene(form_of(4, 2, 32), 16)

    alone = scene.attend(OURS, torch.float16, (2, 76, 77))

    assert torch.equal(scene.attend(OURS, torch.float16, (0, 149, 150), (2, 76, 77))[1:], alone)
    assert torch.equal(scene.attend(OURS, torch.float16, (0, 3, 150), (1, 0, 1), (2, 76, 77))[-1:], alone)


def compiled(capability: int, dtype: str) -> Iterator[dict[str, Any]]:
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), os.environ.get("PYTHONPATH", "")))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "fakes.compiling", str(capability), dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    yield from map(json.loads, done.stdout.splitlines())


@pytest.mark.timeout(300)
@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_every_kernel_compiles_for_each_architecture(capability: int) -> None:
    """Fits its shared memory, and keeps what it works with in registers. `make compile-kernels` does all formats."""
    kernels = list(compiled(capability, "bfloat16"))

    assert {each["kernel"] for each in kernels} == {
        "_norm", "_activate", "_best", "_store", "_decode", "_merge", "_prefill", "_product", "_add_up", "_round", "_rescale",
    }  # fmt: skip
    assert [(each, why) for each in kernels for why in faults(each, capability, torch.bfloat16)] == []


def test_what_does_not_fit_is_a_fault() -> None:
    fits = {"shared": 99 << 10, "stack": 0, "variant": "DIM=128 BLOCK=128"}

    assert faults(fits, 89, torch.bfloat16) == []
    assert "bytes of shared memory" in faults(fits | {"shared": (99 << 10) + 1}, 89, torch.bfloat16)[0]
    assert "are spilled" in faults(fits | {"stack": 8}, 89, torch.float16)[0]
    assert faults(fits | {"stack": 8}, 89, torch.float32) == []
    assert faults(fits | {"stack": 8, "variant": "DIM=256 BLOCK=256"}, 89, torch.float16) == []
