"""Kernels: the reference against arithmetic written out by hand, then every other table against the reference.

Three promises are tested of a native table: its error is that of the format (`assert_as_good`), it never reads what
was not stored, and its results do not depend on the batch, to the bit.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import cache as remember
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.attending import ATTENTION_FORMS, Chunk, Scene, batch_of, empty_cache, form_of
from torch import Tensor

from quire_engine.core.request import Grammar, GrammarKind
from quire_engine.grammars.binding import TokenizerInfos, compiled, compiler_of, load, matcher_of
from quire_engine.layers.rotary import rotary_table
from quire_engine.ops import Activation, AttentionForm, LayerCache, Ops
from quire_engine.ops.cpu import NoLibrary, native_ops
from quire_engine.ops.cpu.compile import Target
from quire_engine.ops.cpu.library import THREADS, open_library, usable_targets
from quire_engine.ops.reference import reference_ops
from quire_engine.ropes import Rope
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import Routing

REFERENCE = reference_ops()
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPSILON = 1e-6


def packed_heads(tokens: int, form: AttentionForm, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, form.given_heads * form.head_dim).to(dtype)


# --- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_attention_is_softmax_over_what_lies_before_each_row(heads: int, kv_heads: int) -> None:
    torch.manual_seed(0)
    form, block = form_of(heads, kv_heads, 8), 4
    chunks: list[Chunk] = [([3, 1], 0, 5), ([0, 5, 2], 9, 1), ([4, 6, 7], 3, 6)]
    cache = (torch.randn(8, kv_heads, block, 8), torch.randn(8, kv_heads, block, 8))
    query = torch.randn(12, heads, 8)

    out = REFERENCE.attention(query, form, cache, batch_of(block, *chunks))

    row = 0
    for blocks, start, length in chunks:
        for position in range(start, start + length):
            places = [(blocks[p // block], p % block) for p in range(position + 1)]
            for head in range(heads):
                group = head * kv_heads // heads
                scores = [float(query[row, head] @ cache[0][b, group, o]) * form.scale for b, o in places]
                weights = torch.softmax(torch.tensor(scores), dim=0)
                expected = sum(w * cache[1][b, group, o] for w, (b, o) in zip(weights, places, strict=True))
                torch.testing.assert_close(out[row, head], expected, atol=1e-5, rtol=1e-4)
            row += 1


def test_a_window_hides_what_lies_further_back_and_a_form_that_is_not_causal_looks_ahead() -> None:
    values = torch.arange(1.0, 5.0).view(1, 1, 4, 1).expand(1, 1, 4, 2)
    cache, batch = (torch.zeros(1, 1, 4, 2), values), batch_of(4, ([0], 0, 4))
    query = torch.zeros(4, 1, 2)  # all scores are the same: a row is the mean of the values that it sees

    behind = REFERENCE.attention(query, form_of(1, 1, 2, window=2), cache, batch)
    around = REFERENCE.attention(query, form_of(1, 1, 2, causal=False), cache, batch)

    assert behind[:, 0, 0].tolist() == [1.0, 1.5, 2.5, 3.5]
    assert around[:, 0, 0].tolist() == [2.5] * 4


def test_a_soft_cap_bounds_the_scores() -> None:
    cache = (torch.tensor([[[[8.0, 0.0], [0.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]]))
    form = AttentionForm(heads=1, kv_heads=1, head_dim=2, scale=1.0, causal=False, softcap=2.0)

    out = REFERENCE.attention(torch.tensor([[[1.0, 0.0]]]), form, cache, batch_of(2, ([0], 1, 1)))

    expected = 1 / (1 + math.exp(-2.0 * math.tanh(8 / 2)))
    torch.testing.assert_close(out[0, 0, 0], torch.tensor(expected))


def test_keys_and_values_are_stored_where_the_block_table_says() -> None:
    form = form_of(1, 1, 2)
    cache = empty_cache(3, 4, form, torch.float32)
    key = torch.arange(6.0).view(3, 2) + 1

    REFERENCE.store_kv(torch.cat((key * 0, key, -key), dim=1), form, cache, batch_of(4, ([2, 0], 3, 3)))

    assert cache[0][2, 0, 3].tolist() == [1, 2]
    assert cache[0][0, 0, :2].tolist() == [[3, 4], [5, 6]]
    assert cache[1][0, 0, 1].tolist() == [-5, -6]
    assert int((cache[0] != 0).sum()) == 6


def test_rotation_turns_each_pair_by_position_times_frequency_and_leaves_the_rest() -> None:
    size, turned, position, theta = 8, 6, 5, 100.0
    form = form_of(2, 1, size, rotary=rotary_table(Rope(dim=turned, theta=theta), 8, torch.device("cpu")))
    qkv = torch.randn(1, 4 * size)

    out = REFERENCE.store_kv(qkv, form, empty_cache(2, 4, form, torch.float32), batch_of(4, ([0, 1], position, 1)))

    x = qkv[0, size : 2 * size]  # the second head
    for i in range(turned // 2):
        angle = position * theta ** (-2 * i / turned)
        low, high = x[i], x[i + turned // 2]
        expected = [low * math.cos(angle) - high * math.sin(angle), high * math.cos(angle) + low * math.sin(angle)]
        torch.testing.assert_close(out[0, 1, [i, i + turned // 2]], torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(out[0, 1, turned:], x[turned:])


def test_heads_are_normed_before_they_are_rotated() -> None:
    form = form_of(1, 1, 4, q_norm=torch.tensor([1.0, 2.0, 3.0, 4.0]), k_norm=torch.full((4,), 2.0), epsilon=0.0)
    cache = empty_cache(1, 4, form, torch.float32)

    out = REFERENCE.store_kv(torch.full((1, 12), 5.0), form, cache, batch_of(4, ([0], 0, 1)))

    torch.testing.assert_close(out[0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(cache[0][0, 0, 0], torch.full((4,), 2.0))
    assert cache[1][0, 0, 0].tolist() == [5.0] * 4


def test_rms_norm_scales_to_unit_mean_square() -> None:
    x, weight = torch.randn(3, 8) * 5, torch.rand(8)

    out = REFERENCE.rms_norm(x, weight, 0.0)

    torch.testing.assert_close((out / weight).square().mean(-1), torch.ones(3))


def test_add_rms_norm_hands_on_the_sum() -> None:
    x, residual = torch.randn(3, 8), torch.randn(3, 8)

    out, total = REFERENCE.add_rms_norm(x.clone(), residual.clone(), torch.ones(8), 0.0)

    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(out, REFERENCE.rms_norm(x + residual, torch.ones(8), 0.0))


def test_layer_norm_has_mean_and_scale_of_its_weights() -> None:
    out = REFERENCE.layer_norm(torch.randn(3, 8) * 5 + 2, torch.full((8,), 2.0), torch.full((8,), 7.0), 0.0)

    torch.testing.assert_close(out.mean(-1), torch.full((3,), 7.0))
    torch.testing.assert_close(out.std(-1, correction=0), torch.full((3,), 2.0))


def test_gate_multiplies_the_right_half_by_the_activation_of_the_left() -> None:
    out = REFERENCE.gate(torch.tensor([[0.0, 2.0, 3.0, 5.0]]), Activation.SILU)

    torch.testing.assert_close(out, torch.tensor([[0.0, 5 * 2 / (1 + math.exp(-2.0))]]))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Activation.SILU, 1.5 / (1 + math.exp(-1.5))),
        (Activation.GELU, 1.5 * 0.5 * (1 + math.erf(1.5 / math.sqrt(2)))),
        (Activation.GELU_TANH, 0.75 * (1 + math.tanh(math.sqrt(2 / math.pi) * (1.5 + 0.044715 * 1.5**3)))),
    ],
)
def test_activations_are_what_their_names_say(activation: Activation, expected: float) -> None:
    torch.testing.assert_close(REFERENCE.activate(torch.tensor([[1.5]]), activation), torch.tensor([[expected]]))


def test_linear_multiplies_and_adds() -> None:
    out = REFERENCE.linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([0.5]))

    assert out.tolist() == [[11.5]]


# --- native tables against it -------------------------------------------------------------------------------------

native = remember(native_ops)
Run = Callable[
    [Ops, Callable[[Tensor], Tensor]], Tensor
]  # with a table, and what makes a tensor of the format under test


def assert_as_good(run: Run, dtype: torch.dtype) -> None:
    """Its error is at most twice that of the reference in the same format, or float32's."""
    exact = run(REFERENCE, lambda x: x.to(dtype).float()).float()
    error = (run(native(dtype), lambda x: x.to(dtype)).float() - exact).abs().max()
    allowed = (run(REFERENCE, lambda x: x.to(dtype)).float() - exact).abs().max() * 2

    assert error <= max(allowed, exact.abs().max() * 1e-5)


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    torch.manual_seed(0)
    chosen: torch.dtype = request.param
    return chosen


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(
    ("rows", "height", "width"),
    [(1, 64, 64), (1, 576, 192), (3, 100, 33), (7, 65, 2), (13, 1, 1), (100, 130, 257), (200, 64, 1024)],
)
def test_linear(dtype: torch.dtype, rows: int, height: int, width: int, wide: bool) -> None:
    x, weight, bias = torch.randn(rows, width), torch.randn(height, width), torch.randn(height)

    assert_as_good(lambda ops, cast: ops.linear(cast(x), ops.pack(cast(weight)), wide=wide), dtype)
    assert_as_good(lambda ops, cast: ops.linear(cast(x), ops.pack(cast(weight)), bias, wide=wide), dtype)
    assert native(dtype).linear(x.to(dtype), native(dtype).pack(weight.to(dtype)), wide=wide).dtype is (
        torch.float32 if wide else dtype
    )


@pytest.mark.parametrize(("height", "width"), [(64, 64), (100, 33), (1, 1)])
def test_embed(dtype: torch.dtype, height: int, width: int) -> None:
    table, ids = torch.randn(height, width).to(dtype), torch.randint(height, (50,))
    ops = native(dtype)

    assert torch.equal(ops.embed(ids, ops.pack(table.clone())), table[ids])


def test_embed_refuses_what_is_no_row(dtype: torch.dtype) -> None:
    ops = native(dtype)
    table = ops.pack(torch.zeros(10, 4, dtype=dtype))

    for wrong in (10, -1):
        with pytest.raises(IndexError, match=f"id {wrong} of a table with 10 rows"):
            ops.embed(torch.tensor([0, wrong]), table)


SHAPES = pytest.mark.parametrize(("rows", "width"), [(1, 64), (1, 192), (5, 1), (3, 33), (70, 1000), (2, 4099)])


@SHAPES
def test_rms_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight = torch.randn(rows, width) * 3, torch.randn(width)

    assert_as_good(lambda ops, cast: ops.rms_norm(cast(x), weight, EPSILON), dtype)


@SHAPES
def test_add_rms_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, residual, weight = torch.randn(rows, width), torch.randn(rows, width), torch.randn(width)

    for part in (0, 1):
        assert_as_good(
            lambda ops, cast, part=part: ops.add_rms_norm(cast(x).clone(), cast(residual).clone(), weight, EPSILON)[
                part
            ],
            dtype,
        )


@SHAPES
def test_layer_norm(dtype: torch.dtype, rows: int, width: int) -> None:
    x, weight, bias = torch.randn(rows, width) * 3 + 1, torch.randn(width), torch.randn(width)

    assert_as_good(lambda ops, cast: ops.layer_norm(cast(x), weight, bias, EPSILON), dtype)


@SHAPES
@pytest.mark.parametrize("activation", Activation)
def test_activate(dtype: torch.dtype, rows: int, width: int, activation: Activation) -> None:
    x = torch.randn(rows, width) * 4

    assert_as_good(lambda ops, cast: ops.activate(cast(x), activation), dtype)


@SHAPES
@pytest.mark.parametrize("activation", Activation)
def test_gate(dtype: torch.dtype, rows: int, width: int, activation: Activation) -> None:
    x = torch.randn(rows, 2 * width) * 4

    assert_as_good(lambda ops, cast: ops.gate(cast(x), activation), dtype)


@pytest.mark.parametrize(("rows", "experts", "chosen"), [(1, 4, 2), (40, 3, 3), (9, 20, 1)])
@pytest.mark.parametrize("activation", [Activation.SILU, Activation.GPT_OSS])
def test_mix(dtype: torch.dtype, rows: int, experts: int, chosen: int, activation: Activation) -> None:
    x, gate_up, down = torch.randn(rows, 48), torch.randn(experts, 66, 48), torch.randn(experts, 48, 33)
    routed = REFERENCE.route(torch.randn(rows, experts), Routing(chosen=chosen, renormalised=True))
    biases = (torch.randn(experts, 66), torch.randn(experts, 48)) if activation is Activation.GPT_OSS else None

    def run(ops: Ops, cast: Callable[[Tensor], Tensor]) -> Tensor:
        packed = [ops.pack_experts(iter(cast(each)), experts) for each in (gate_up, down)]
        return ops.mix(cast(x), routed, *packed, activation, biases)

    assert_as_good(run, dtype)


@pytest.mark.parametrize(("rows", "heads", "height", "width"), [(1, 4, 64, 32), (40, 3, 33, 20), (200, 1, 8, 100)])
def test_per_head(dtype: torch.dtype, rows: int, heads: int, height: int, width: int) -> None:
    x, weights = torch.randn(rows, heads, width), torch.randn(heads, height, width)

    assert_as_good(lambda ops, cast: ops.per_head(cast(x), ops.pack_experts(iter(cast(weights)), heads)), dtype)


@pytest.mark.parametrize("activation", Activation)
def test_activations_keep_what_is_no_number(dtype: torch.dtype, activation: Activation) -> None:
    x = torch.tensor([[float("nan"), 0.0, -0.0, 60.0, -60.0]]).to(dtype)

    out = native(dtype).activate(x, activation)

    torch.testing.assert_close(out, REFERENCE.activate(x, activation), equal_nan=True)


BLOCKS: list[Chunk] = [
    ([7, 2, 0, 9, 4, 1, 3, 13, 11], 0, 60),
    ([5], 6, 1),
    ([6, 8, 10, 12], 20, 9),
]  # for blocks of 8 and more


@pytest.mark.parametrize("block_size", [8, 16, 32])
@pytest.mark.parametrize(
    "form",
    [
        form_of(),
        form_of(4, 2, 64, rotary=torch.randn(128, 64)),
        form_of(3, 1, 48, rotary=torch.randn(128, 20), q_norm=torch.randn(48), k_norm=torch.randn(48)),
        form_of(2, 2, 10, rotary=torch.randn(128, 10), k_norm=torch.randn(10)),
        form_of(8, 1, 256, rotary=torch.randn(128, 128)),
        form_of(5, 1, 80, rotary=torch.randn(128, 16), latent=64),
    ],
    ids=["plain", "rotated", "normed", "odd", "large", "latent"],
)
def test_store_kv(dtype: torch.dtype, block_size: int, form: AttentionForm) -> None:
    """Queries as returned, keys and values as attention finds them: one key at a time has all the weight."""
    batch = batch_of(block_size, *BLOCKS)
    qkv = torch.randn(len(batch.places), form.given_heads * form.head_dim)

    def stored(ops: Ops, cast: Callable[[Tensor], Tensor]) -> tuple[Tensor, LayerCache]:
        cache = empty_cache(14, block_size, form, cast(qkv).dtype)
        return ops.store_kv(cast(qkv), form, cache, batch), cache

    assert_as_good(lambda ops, cast: stored(ops, cast)[0], dtype)
    for which in (0,) if form.latent else (0, 1):  # a block is a permutation of what the reference has there
        assert_as_good(lambda ops, cast, which=which: stored(ops, cast)[1][which].flatten(2).sort().values, dtype)


FORMS = pytest.mark.parametrize("form", ATTENTION_FORMS.values(), ids=ATTENTION_FORMS.keys())


@pytest.mark.parametrize("block_size", [8, 16, 32])
@FORMS
def test_attention(dtype: torch.dtype, form: AttentionForm, block_size: int) -> None:
    scene = Scene(form, block_size)
    chunks = [(0, 40, 150), (1, 0, 1), (2, 76, 77)]

    assert_as_good(lambda ops, cast: scene.attend(ops, cast(torch.zeros(0)).dtype, *chunks), dtype)


@pytest.mark.parametrize("width", [1, 5, 64, 1000])
def test_best(width: int) -> None:
    logits = torch.randn(50, width)
    logits[3] = -math.inf
    logits[4, width // 2] = math.nan
    logits[5, -1] = math.inf
    logits[6] = 0.0  # all alike: the first
    logits[7, : width // 2] = -math.inf

    assert torch.equal(native(torch.float32).best(logits), REFERENCE.best(logits))


@pytest.mark.parametrize("width", [1, 31, 64, 5001])
def test_rule_out(width: int) -> None:
    rows = torch.tensor([4, 0, 2])
    allowed = torch.randint(-(2**31), 2**31, (3, -(-width // 32)), dtype=torch.int32)
    logits = torch.randn(6, width)
    expected = logits.clone()
    REFERENCE.rule_out(expected, rows, allowed)

    native(torch.float32).rule_out(logits, rows, allowed)

    assert torch.equal(logits, expected)


def test_walker() -> None:
    """Grammars that end, that are shown what they do not allow, that are shown nothing, and none: seldom, often, all at once."""
    texts = [b"<end>", *(bytes([byte]) for byte in range(32, 127)), b'{"', b'":', b'", "']
    native_library, end = load(), 0
    info = TokenizerInfos(native_library, texts, [end]).of(GrammarKind.JSON)
    schema = Grammar(
        kind=GrammarKind.JSON, text='{"type": "object", "additionalProperties": {"type": ["integer", "boolean"]}}'
    )
    grammar = compiled(compiler_of(native_library, info), schema)
    rng = np.random.default_rng(1)
    rows, words = 60, -(-len(texts) // 32)
    walkers = [ops.walker(rows + 4, words) for ops in (REFERENCE, native(torch.float32))]
    slots = rng.permutation(rows + 4)[:rows]
    for walker in walkers:
        walker.masks[:] = -1
        for row in range(rows):
            walker.put(slots[row], matcher_of(native_library, grammar, [end]) if row % 7 else None)
    tokens, going_on = np.full(rows, -1), []
    for _ in range(20):
        for walker in walkers:
            walker.begin(slots, tokens)
            walker.end()
        ended = walkers[0].seconds[slots] < 0
        masks = walkers[0].masks[slots]

        assert np.array_equal(walkers[0].masks, walkers[1].masks)
        assert np.array_equal(ended, walkers[1].seconds[slots] < 0)
        assert not masks[ended].any()
        assert masks[~ended].any(axis=1).all()

        going_on.append(rows - int(ended.sum()))
        for row in range(rows):
            allowed = np.flatnonzero(np.unpackbits(masks[row].view(np.uint8), count=len(texts), bitorder="little"))
            tokens[row] = rng.choice(allowed) if len(allowed) and rng.random() < 0.98 else rng.integers(-1, len(texts))
            if ended[row]:
                for walker in walkers:
                    walker.put(slots[row], None)
    assert (np.delete(walkers[1].masks, slots, axis=0) == -1).all()
    assert going_on[0] == 51
    assert 0 < going_on[-1] < 40


def test_other_cores_walk_until_a_kernel_needs_them() -> None:
    texts = [b"<end>", *(bytes([byte]) for byte in range(32, 127))]
    native_library = load()
    info = TokenizerInfos(native_library, texts, [0]).of(GrammarKind.REGEX)
    grammar = compiled(compiler_of(native_library, info), Grammar(kind=GrammarKind.REGEX, text="[ab]+"))
    ops, rows = native(torch.float32), 40
    x, weight = torch.randn(64, 512), ops.pack(torch.randn(512, 512))
    expected = ops.linear(x, weight)
    slots = np.random.default_rng(1).permutation(100)[:rows]
    for _ in range(50):
        walker = ops.walker(100, 3)
        for slot in slots:
            walker.put(slot, matcher_of(native_library, grammar, [0]))
        walker.begin(slots, np.full(rows, -1))

        assert torch.equal(ops.linear(x, weight), expected)
        assert not walker.end()
        assert walker.masks[slots].any(axis=1).all()
        assert not np.delete(walker.masks, slots, axis=0).any()

        walker.begin(slots[:0], slots[:0])
        assert not walker.end()
        walker.begin(slots, np.full(rows, 1))  # which none allows
        assert walker.end()
        assert not walker.masks.any()
        walker.begin(slots, np.full(rows, -1))  # it is under way when it goes


class ToyModel:
    """Every kernel at least once, and a layer's memory used again by the next."""

    def __init__(self, ops: Ops, dtype: torch.dtype, form: AttentionForm) -> None:
        torch.manual_seed(1)
        self.ops, self.form, self.hidden = ops, form, form.heads * form.head_dim
        qkv = (form.heads + 2 * form.kv_heads) * form.head_dim

        def matrix(height: int, width: int) -> object:
            return ops.pack((torch.randn(height, width) / width**0.5).to(dtype))

        self.table, self.places = matrix(90, self.hidden), matrix(200, self.hidden)
        self.qkv, self.out = matrix(qkv, self.hidden), matrix(self.hidden, self.hidden)
        self.gate_up, self.down = matrix(400, self.hidden), matrix(self.hidden, 200)
        self.bias, self.norm = torch.randn(qkv), torch.randn(self.hidden)

    def forward(self, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        ops = self.ops
        x = ops.embed(batch.tokens, self.table)
        residual = ops.embed(batch.positions, self.places)
        for _ in range(3):
            x, residual = ops.add_rms_norm(x, residual, self.norm, EPSILON)
            query = ops.store_kv(ops.linear(x, self.qkv, self.bias), self.form, cache, batch)
            x = ops.linear(ops.attention(query, self.form, cache, batch).flatten(1), self.out)
            x = ops.activate(ops.rms_norm(x, self.norm, EPSILON), Activation.GELU)
            x = ops.linear(ops.gate(ops.linear(x, self.gate_up), Activation.SILU), self.down)
        return ops.layer_norm(x, self.norm, self.norm, EPSILON)

    def with_torch(self, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        return self.forward(batch, cache) * 2

    def with_other_rows(self, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        x = self.forward(batch, cache).reshape(-1, self.form.head_dim)
        return self.ops.rms_norm(x, self.norm[: self.form.head_dim], EPSILON).view(-1, self.hidden)


STEPS: list[list[Chunk]] = [
    [([1, 2], 0, 17), ([3], 0, 5)],
    [([1, 2], 17, 1), ([3], 5, 1), ([4], 0, 1)],
    [([1, 2], 18, 1)],
    [([1, 2], 19, 1), ([3], 6, 1), ([4], 1, 1), ([5, 6, 7], 0, 37)],  # more rows than there is room for
    [([3], 7, 9), ([4], 2, 13)],
]


@pytest.mark.parametrize("which", ["forward", "with_torch", "with_other_rows"])
@torch.inference_mode()
def test_recorded(dtype: torch.dtype, which: str) -> None:
    """Bit for bit what the pass itself gives, whatever the rows, and also where it cannot be replayed."""
    model = ToyModel(native(dtype), dtype, form_of(rotary=torch.randn(128, 64)))
    forward = getattr(model, which)
    recorded = model.ops.recorded(forward, 22)
    caches = [empty_cache(8, 16, model.form, dtype) for _ in range(2)]

    for number, step in enumerate(STEPS * 2):
        batch = batch_of(16, *step)
        batch = dataclasses.replace(batch, tokens=(batch.positions * 7 + number) % 90)
        assert torch.equal(recorded(batch, caches[0]), forward(batch, caches[1]))
    assert torch.equal(caches[0][0], caches[1][0])
    assert torch.equal(recorded(batch, caches[1]), forward(batch, caches[1]))  # of another cache


@pytest.mark.parametrize("rows", [192, 193, 500])
@torch.inference_mode()
def test_recorded_with_many_rows(dtype: torch.dtype, rows: int) -> None:
    """They are taken in blocks from one attention to the next (tape.c)."""
    model = ToyModel(native(dtype), dtype, form_of(rotary=torch.randn(512, 64)))
    recorded, caches = (
        model.ops.recorded(model.forward, 500),
        [empty_cache(40, 16, model.form, dtype) for _ in range(2)],
    )
    first, second = rows - 121, 121

    for length in (5, first):
        batch = batch_of(16, (list(range(25)), 0, length), (list(range(25, 40)), 0, second))
        batch = dataclasses.replace(batch, tokens=batch.positions % 90, positions=batch.positions % 200)
        assert torch.equal(recorded(batch, caches[0]), model.forward(batch, caches[1]))
    assert torch.equal(caches[0][1], caches[1][1])


@torch.inference_mode()
def test_a_pass_is_replayed_only_if_it_is_kernels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = native_ops(torch.float32)
    model = ToyModel(ops, torch.float32, form_of())
    calls: list[str] = []
    for which in ("forward", "with_torch", "with_other_rows"):
        recorded = ops.recorded(
            lambda batch, cache, which=which: calls.append(which) or getattr(model, which)(batch, cache), 22
        )
        cache = empty_cache(8, 16, model.form, torch.float32)
        for step in STEPS[:3]:
            batch = batch_of(16, *step)
            recorded(dataclasses.replace(batch, tokens=batch.positions), cache)

    assert calls == ["forward"] + ["with_torch"] * 3 + ["with_other_rows"] * 3


@torch.inference_mode()
def test_a_replay_refuses_what_is_no_id(dtype: torch.dtype) -> None:
    model = ToyModel(native(dtype), dtype, form_of())
    recorded, cache = model.ops.recorded(model.forward, 22), empty_cache(8, 16, model.form, dtype)
    batch = batch_of(16, *STEPS[1])
    recorded(dataclasses.replace(batch, tokens=batch.positions), cache)

    with pytest.raises(IndexError, match="an id that is none"):
        recorded(dataclasses.replace(batch, tokens=batch.positions - 100), cache)


NAMES = [str(each).removeprefix("torch.") for each in DTYPES]
EVERY_TARGET = pytest.mark.parametrize(  # that this CPU has
    ("name", "target"),
    [(name, target) for name in NAMES for target in usable_targets(name)],
    ids=lambda value: getattr(value, "name", value),
)


@EVERY_TARGET
def test_all_instruction_sets_compute_the_same(name: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("quire_engine.ops.cpu.library.usable_targets", lambda number_format: [target])
    dtype = getattr(torch, name)
    ops = native_ops(dtype)
    x, weight, scene = torch.randn(7, 97), torch.randn(70, 97), Scene(form_of(), 16)

    for run in (
        lambda ops: ops.linear(x.to(dtype), ops.pack(weight.to(dtype))),
        lambda ops: ops.layer_norm(x.to(dtype), weight[0], weight[1], EPSILON),
        lambda ops: scene.attend(ops, dtype, (0, 40, 150), (2, 76, 77)),
    ):
        torch.testing.assert_close(run(ops), run(native(dtype)), rtol=2**-7, atol=2**-8)


@EVERY_TARGET
def test_numbers_are_read_and_rounded_as_torch_does(name: str, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_engine.ops.cpu.library.usable_targets", lambda number_format: [target])
    bits = torch.arange(-(2**15), 2**15)
    shift = 16 if name == "float32" else 0
    numbers = (bits << shift).to(torch.int32 if shift else torch.int16).view(getattr(torch, name))[None]  # of all sizes
    others = numbers[:, torch.randperm(numbers.numel())]
    smallest = 2**-126 if name == "bfloat16" else 0  # what is smaller may be 0 (element.h)

    for other in (others, torch.zeros_like(numbers)):
        _, total = native_ops(numbers.dtype).add_rms_norm(
            numbers.clone(), other.clone(), torch.ones(numbers.numel()), EPSILON
        )
        torch.testing.assert_close(total, numbers + other, rtol=0, atol=smallest, equal_nan=True)


def test_without_a_compiler_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("quire_engine.ops.cpu.library.CACHE", tmp_path)
    monkeypatch.setattr("quire_engine.ops.cpu.library.BROUGHT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    with pytest.raises(NoLibrary, match="no C compiler"):
        native_ops(torch.float32)


def test_a_library_is_kept_for_the_next_process_if_there_is_a_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("quire_engine.ops.cpu.library.CACHE", tmp_path / "new")
    monkeypatch.setattr("quire_engine.ops.cpu.library.BROUGHT", tmp_path)
    native_ops(torch.float32)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("quire_engine.ops.cpu.library.CACHE", Path("/proc/none"))

    assert len(list((tmp_path / "new").iterdir())) == 1
    with pytest.raises(NoLibrary):  # nothing to be found, nothing to compile with
        native_ops(torch.float32)


def test_every_kernel_has_a_case_here() -> None:
    ops, cases = native(torch.float32), {name.removeprefix("test_") for name in globals()}
    ours = {
        field.name
        for field in dataclasses.fields(Ops)
        if getattr(getattr(ops, field.name), "__module__", "").startswith("quire_engine.ops.cpu")
    }

    assert ours - {"pack", "pack_experts"} <= cases  # which have a meaning to linear, embed and mix alone
    assert {"linear", "attention", "walker"} <= ours


# --- the batch has no influence -----------------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest, dtype: torch.dtype) -> Iterator[int]:
    library = open_library(str(dtype).removeprefix("torch."))
    library.set_threads(request.param)
    yield request.param
    library.set_threads(THREADS)


@pytest.mark.parametrize(("height", "width"), [(200, 384), (65, 33), (1024, 1024)])
def test_a_row_of_linear_does_not_depend_on_the_others(
    dtype: torch.dtype, height: int, width: int, threads: int
) -> None:
    ops = native(dtype)
    x, weight = torch.randn(200, width).to(dtype), ops.pack(torch.randn(height, width).to(dtype))

    together = ops.linear(x, weight)

    for rows in (slice(0, 1), slice(199, 200), slice(50, 53), slice(90, 190)):
        assert torch.equal(ops.linear(x[rows], weight), together[rows])


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_row_is_routed_as_it_would_be_alone(sigmoid: bool) -> None:
    """To the bit: where a row stands in the vectors of a processor is its neighbours' doing."""
    likings, routing = torch.randn(50, 9), Routing(chosen=3, renormalised=True, sigmoid=sigmoid)
    ops = native(torch.float32)

    choices, shares = ops.route(likings, routing)

    for row in range(50):
        alone = ops.route(likings[row : row + 1].clone(), routing)
        assert torch.equal(alone[0][0], choices[row])
        assert torch.equal(alone[1][0], shares[row])


def test_a_row_of_a_norm_does_not_depend_on_the_others(dtype: torch.dtype, threads: int) -> None:
    ops = native(dtype)
    x, weight = torch.randn(500, 999).to(dtype), torch.randn(999)

    for norm in (lambda x: ops.rms_norm(x, weight, EPSILON), lambda x: ops.layer_norm(x, weight, weight, EPSILON)):
        assert torch.equal(norm(x[77:78]), norm(x)[77:78])


@pytest.mark.parametrize("block_size", [8, 16, 32])
@FORMS
def test_attention_does_not_depend_on_chunks_or_company(
    dtype: torch.dtype, form: AttentionForm, block_size: int, threads: int
) -> None:
    scene, ops = Scene(form, block_size), native(dtype)
    whole = scene.attend(ops, dtype, (0, 0, 150), (2, 0, 77), (1, 0, 1))

    if form.causal:  # else a row sees what its chunk brings
        for cuts in ([0, 150], [0, 1, 2, 3, 150], [0, 16, 32, 149, 150], [0, 7, 50, 67, 131, 150]):
            parts = [scene.attend(ops, dtype, (0, start, end)) for start, end in pairwise(cuts)]
            assert torch.equal(torch.cat(parts), whole[:150])
    assert torch.equal(scene.attend(ops, dtype, (2, 0, 77)), whole[150:227])
    assert torch.equal(scene.attend(ops, dtype, (1, 0, 1)), whole[227:])
