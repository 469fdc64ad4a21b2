"""Quantized checkpoints: what is computed is the dequantised model, and what is not read is refused by name."""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from fakes.checkpoints import CASES, rename_tensors, save_case, save_llama, save_model
from fakes.logits import logits_of
from fakes.quantized import METHODS, compressed, matrices, save_quantized
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quire_api.engine import EngineConfig, Quantization
from quire_engine.build import build_engine
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.errors import ConfigFailure, MemoryFailure, WeightsFailure
from quire_engine.layers.linear import Linear
from quire_engine.models import GENERATORS
from quire_engine.models.weights import DummyWeights, Weights, saved_bytes
from quire_engine.ops import Ops
from quire_engine.ops.packed import Kind, Packed
from quire_engine.ops.reference import reference_ops
from quire_engine.quant import SCHEMES, form_of, scheme_of
from quire_engine.quant.stored import Coded, Derived, Parts, Stored
from quire_engine.runtime.ranks import Ranks
from quire_engine.runtime.room import check_room
from quire_engine.spec import read_spec

CPU = torch.device("cpu")
PROMPT = [(7 * i + 3) % 128 for i in range(40)]
Q_PROJ = "model.layers.1.self_attn.q_proj"
REFERENCE = reference_ops()
ALL = REFERENCE.keeps
UNEVEN = {"fp8-block", "compressed-fp8-block"}  # their blocks of 40 leave groups of 8, which no kernel takes


@functools.cache
def saved_quantized(name: str, folder: Path) -> Any:
    folder.mkdir()
    return save_quantized(name, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Path, Any]]]:
    """Name of a method -> the checkpoint, and the dequantised model in transformers; written once."""
    base = tmp_path_factory.mktemp("quantized")
    yield lambda name: (base / name, saved_quantized(name, base / name))
    saved_quantized.cache_clear()


def weights_of(folder: Path, keeps: Collection[Kind] = ()) -> Weights:
    return Weights(folder, torch.float32, CPU, scheme_of(read_spec(folder).quantization), keeps)


def load(folder: Path, keeps: Collection[Kind] = (), ops: Ops = REFERENCE) -> Any:
    spec = read_spec(folder)
    with weights_of(folder, keeps) as weights:
        return GENERATORS[spec.architecture](spec, weights, ops, CPU)


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_the_dequantised_model(method: str, saved: Any) -> None:
    folder, oracle = saved(method)

    ours = logits_of(read_spec(folder), load(folder), PROMPT)

    with torch.inference_mode():
        theirs = oracle(torch.tensor([PROMPT])).logits[0]
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_the_dequantised_ones_and_near_the_original(method: str, saved: Any, tmp_path: Path) -> None:
    folder, oracle = saved(method)
    original = save_llama(tmp_path, tie_word_embeddings=False).state_dict()

    weights = weights_of(folder).__enter__()

    for name, plain in matrices(oracle).items():
        ours = weights.take(name, tuple(plain.shape))
        torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-7)
        error = (ours - original[name]).abs().max() / original[name].abs().max()
        assert 0 < float(error) < METHODS[method].error, name


@pytest.mark.parametrize("method", METHODS)
def test_what_a_rank_reads_is_its_part_of_the_whole(method: str, saved: Any) -> None:
    folder, oracle = saved(method)
    weights = weights_of(folder).__enter__()

    for name, plain in matrices(oracle).items():
        shape = tuple(plain.shape)
        whole = weights.take(name, shape)
        for dim in (0, 1):
            parts = [Ranks(2, place).share(shape[dim]) for place in (0, 1)]
            read = [weights.take(name, shape, part=part, dim=dim) for part in parts]
            assert torch.equal(torch.cat(read, dim), whole), (name, dim)


def test_a_rank_without_the_vocabulary_reads_nothing_of_it(saved: Any) -> None:
    folder, _ = saved("awq")
    name = "model.embed_tokens.weight"

    def watched(stored: Parts) -> dict[str, Stored]:
        return {**stored, name: Derived((128, 64), lambda: pytest.fail("it was read"))}

    weights = Weights(folder, torch.float32, CPU, watched).__enter__()

    assert weights.take(name, (128, 64), part=Ranks(stages=2, stage=1).rows(128)).shape == (0, 64)


def test_nothing_but_its_part_stays_in_a_ranks_memory(saved: Any) -> None:
    folder, _ = saved("awq")
    weights, name = weights_of(folder).__enter__(), "model.layers.0.mlp.up_proj.weight"

    own = weights.take(name, (96, 64), part=Ranks(2, 1).share(96))

    assert own.untyped_storage().nbytes() == own.nbytes


def test_parts_and_stacks_of_quantized_tensors_are_those_of_plain_ones(saved: Any) -> None:
    folder, oracle = saved("awq")
    plain = matrices(oracle)
    names = [f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up")]
    weights = weights_of(folder).__enter__()

    stacked = weights.stacked(names, [(96, 64)] * 2)
    rows = list(weights.parts(names[0], (96, 64)))

    torch.testing.assert_close(stacked, torch.cat([plain[name] for name in names]), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.stack(rows), plain[names[0]], rtol=1e-6, atol=1e-7)


def test_a_zero_of_nothing_is_stored_by_gptq_as_the_largest(tmp_path: Path) -> None:
    """Of rows without a negative number; less one, it has no other place in four bits."""
    parts, plain = METHODS["gptq-4"].write(torch.rand(8, 64).numpy())
    save_file({f"a.{end}": torch.as_tensor(part) for end, part in parts.items()}, tmp_path / "model.safetensors")
    assert int(parts["qzeros"].min()) == -1

    with Weights(tmp_path, torch.float32, CPU, scheme_of(METHODS["gptq-4"].said)) as weights:
        ours = weights.take("a.weight", (8, 64))

    torch.testing.assert_close(ours, torch.from_numpy(plain), rtol=1e-6, atol=1e-7)


def test_experts_are_dequantised_one_by_one(tmp_path: Path) -> None:
    """A Mixtral by AWQ has each expert's matrices under its own name."""
    oracle = save_case("mixtral", tmp_path)
    write, plain = METHODS["awq"].write, {}

    def quantise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stored = {}
        for name, tensor in apart(tensors).items():
            if re.search(r"\.w[123]\.", name):
                parts, matrix = write(tensor.numpy())
                plain[name] = torch.from_numpy(matrix)
                stored |= {f"{name.removesuffix('.weight')}.{end}": torch.as_tensor(p) for end, p in parts.items()}
            else:
                stored[name] = tensor
        return stored

    rename_tensors(tmp_path, quantise)
    edit(tmp_path, METHODS["awq"].said)

    ours = logits_of(read_spec(tmp_path), load(tmp_path), PROMPT)

    oracle.load_state_dict(together(plain, oracle.state_dict()), strict=False)
    with torch.inference_mode():
        theirs = oracle(torch.tensor([PROMPT])).logits[0]
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


def apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts' matrices as w1, w3 and w2, however transformers has written them."""
    out = {}
    for name, tensor in tensors.items():
        base = name.rpartition(".experts.")[0] + ".experts"
        if name.endswith(".experts.gate_up_proj"):
            for e, matrix in enumerate(tensor):
                out[f"{base}.{e}.w1.weight"], out[f"{base}.{e}.w3.weight"] = (m.contiguous() for m in matrix.chunk(2))
        elif name.endswith(".experts.down_proj"):
            out |= {f"{base}.{e}.w2.weight": matrix.contiguous() for e, matrix in enumerate(tensor)}
        else:
            out[name] = tensor
    return out


def together(plain: dict[str, torch.Tensor], like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The other way, under the names that a model in memory has."""
    out = {}
    for name in like:
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            base = "model.layers." + name.split(".")[2]
            mine = {n: t for n, t in plain.items() if n.startswith(f"{base}.")}
            experts = range(len(like[name]))
            of = [[mine[next(n for n in mine if f".{e}.{w}." in n)] for w in ("w1", "w3", "w2")] for e in experts]
            whole = [torch.cat(ws[:2]) if name.endswith("gate_up_proj") else ws[2] for ws in of]
            out[name] = torch.stack(whole)
    return out


# --- what stays in few bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_few_bits_has_the_logits_of_the_dequantised_one(method: str, saved: Any) -> None:
    folder, _ = saved(method)
    given: list[Any] = []
    spy = replace(REFERENCE, pack=lambda weight: given.append(weight) or weight)  # type: ignore[func-returns-value]

    ours = logits_of(read_spec(folder), load(folder, ALL, spy), PROMPT)

    assert torch.equal(ours, logits_of(read_spec(folder), load(folder), PROMPT))
    packed = [weight for weight in given if isinstance(weight, Packed)]
    numbers = sum(weight.height * weight.width for weight in packed)
    assert len(packed) == (0 if method in UNEVEN else len(given) - 2)  # all but embedding and head
    assert sum(weight.nbytes for weight in packed) <= numbers * (0.7 if "8" not in method else 1.3)


@pytest.mark.parametrize("method", METHODS)
def test_the_parts_of_two_ranks_are_the_whole(method: str, saved: Any) -> None:
    """Of q|k|v by outputs; by inputs, where a border between groups is the border of ranks, and where it is not."""
    folder, _ = saved(method)
    weights, ranks = weights_of(folder, ALL).__enter__(), [Ranks(2, place) for place in (0, 1)]
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(0))
    attention = "model.layers.0.self_attn"
    qkv, sizes = [f"{attention}.{which}_proj" for which in "qkv"], (64, 32, 32)

    whole = Linear(REFERENCE, weights, *qkv, out=sizes, into=64)(x[:, :64])
    halves = [
        Linear(REFERENCE, weights, *qkv, out=tuple(each.share(n) for n in sizes), into=64)(x[:, :64]) for each in ranks
    ]

    split = [half.split([n // 2 for n in sizes], dim=1) for half in halves]
    torch.testing.assert_close(torch.cat([torch.cat(each, 1) for each in zip(*split, strict=True)], 1), whole)
    for name, into in ((f"{attention}.o_proj", 64), ("model.layers.0.mlp.down_proj", 96)):
        whole = Linear(REFERENCE, weights, name, out=(64,), into=into)(x[:, :into])
        parts = [each.share(into) for each in ranks]
        sums = [
            Linear(REFERENCE, weights, name, out=(64,), into=part)(x[:, part.start : part.start + part.size])
            for part in parts
        ]
        torch.testing.assert_close(sums[0] + sums[1], whole)


def test_matrices_that_are_not_packed_alike_are_stacked_plain(saved: Any) -> None:
    """Of q and k by other orders of their inputs."""
    folder, oracle = saved("gptq-4-desc-act")
    scheme = scheme_of(METHODS["gptq-4-desc-act"].said)
    names = [f"model.layers.0.self_attn.{which}_proj.weight" for which in "qk"]

    def turned(stored: Parts) -> dict[str, Stored]:
        plain = scheme(stored)  # type: ignore[misc]
        other = plain[names[0]]
        assert isinstance(other, Coded)
        flipped = lambda: replace(other.packed(), order=other.packed().order.flip(0))  # type: ignore[union-attr]  # noqa: E731
        return {**plain, names[0]: Coded("q", other.kind, other.shape, other.groups, flipped)}

    weights = Weights(folder, torch.float32, CPU, turned, ALL).__enter__()

    stacked = weights.matrix(names, [(64, 64), (32, 64)], [None, None])

    assert isinstance(stacked, torch.Tensor)
    torch.testing.assert_close(stacked[64:], matrices(oracle)[names[1]])
    assert isinstance(weights.matrix(names[:1], [(64, 64)], [None]), Packed)


@pytest.mark.parametrize("method", ["awq", "gptq-8", "fp8-channel", "fp8-block"])
def test_what_is_saved_is_known_before_a_number_is_read(method: str, saved: Any) -> None:
    folder, _ = saved(method)
    plain, kept = weights_of(folder), weights_of(folder, ALL)
    for weights in (plain, kept):
        with weights:
            spec = read_spec(folder)
            GENERATORS[spec.architecture](spec, weights, REFERENCE, CPU)

    said = saved_bytes(folder, torch.float32, scheme_of(METHODS[method].said), ALL, spec.shape.layers)

    assert said == pytest.approx(plain.given_bytes - kept.given_bytes, rel=0.05)
    assert (said > 0) == (method not in UNEVEN)


def test_nothing_is_saved_by_a_router_in_few_bits(tmp_path: Path) -> None:
    """Which experts a token goes to is asked of plain matrices."""
    said = {"quant_method": "fp8"}

    def saved_by(name: str) -> int:
        weight, scale = torch.zeros(64, 64, dtype=torch.float8_e4m3fn), torch.ones(1)
        save_file({f"{name}.weight": weight, f"{name}.weight_scale": scale}, tmp_path / "model.safetensors")
        return saved_bytes(tmp_path, torch.float32, scheme_of(said), ALL, 2)

    assert saved_by("model.layers.0.mlp.gate") == 0
    assert saved_by("model.layers.0.mlp.gate_proj") > 0
    assert saved_by("model.layers.2.mlp.gate_proj") == 0  # a layer more than the model has


def test_what_is_saved_makes_room(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = read_spec(saved("awq")[0]).shape
    monkeypatch.setattr("quire_engine.runtime.room.free_bytes", lambda device: shape.weight_bytes("float32"))
    room = functools.partial(check_room, shape, "float32", CPU, tensor=1, stages=1, here=1, dequantised=True)

    with pytest.raises(MemoryFailure, match="once they are dequantised to float32"):
        room()
    room(saved=100_000)


@pytest.mark.parametrize(("method", "kind"), [("awq", Kind.INT4), ("gptq-8", Kind.INT8), ("fp8-channel", Kind.FP8)])
def test_made_up_weights_are_as_small_as_real_ones(method: str, kind: Kind, saved: Any) -> None:
    """What is measured without a checkpoint reads as many bytes; and what comes of it are numbers."""
    folder, _ = saved(method)
    spec, real = read_spec(folder), weights_of(folder, ALL)
    with real:
        GENERATORS[spec.architecture](spec, real, REFERENCE, CPU)

    with DummyWeights(torch.float32, CPU, form_of(METHODS[method].said), ALL) as weights:
        model = GENERATORS[spec.architecture](spec, weights, REFERENCE, CPU)

    assert form_of(METHODS[method].said) == (kind, METHODS[method].said.get("group_size", -1))
    assert weights.given_bytes == pytest.approx(real.given_bytes, rel=0.05)
    assert bool(logits_of(spec, model, PROMPT).isfinite().all())


@pytest.mark.parametrize(
    ("kind", "group", "kept"), [(Kind.INT4, 32, True), (Kind.INT4, 16, False), (Kind.FP8, -1, True)]
)
def test_made_up_matrices_are_such_as_kernels_take(kind: Kind, group: int, kept: bool) -> None:
    with DummyWeights(torch.float32, CPU, (kind, group), ALL) as weights:
        matrix = weights.matrix(["a.weight"], [(64, 64)], [None])

    assert isinstance(matrix, Packed) == kept
    if isinstance(matrix, Packed):
        assert (matrix.zeros is None) == (kind is Kind.FP8)


def edit(folder: Path, said: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": said}))


# --- what is refused ----------------------------------------------------------------------------------------------


def said(method: str, **changes: Any) -> dict[str, Any]:
    return METHODS[method].said | changes


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a method": ({"quant_method": "hqq"}, "quantized by hqq are not supported yet, only awq, gptq"),
    "awq gemv": (said("awq", version="GEMV"), "AWQ's gemv layout is not supported yet, only gemm"),
    "awq of 8 bits": (said("awq", bits=8), "AWQ of 8 bits is not supported yet"),
    "awq without zeros": (said("awq", zero_point=False), "AWQ without zero points"),
    "gptq of 3 bits": (said("gptq-4", bits=3), "GPTQ of 3 bits is not supported yet"),
    "gptq marlin": (said("gptq-4", checkpoint_format="marlin"), "GPTQ's layout marlin is not supported yet"),
    "gptq mixed": (said("gptq-4", dynamic={"+:mlp": {"bits": 8}}), r"GPTQ with other settings .* for '\+:mlp'"),
    "group no number": (said("gptq-4", group_size="32"), "group_size of quantization_config is '32'"),
    "fp8 e5m2": (said("fp8-block", fmt="e5m2"), "FP8 of the form e5m2"),
    "fp8 odd block": (said("fp8-block", weight_block_size=128), "weight_block_size of quantization_config is 128"),
    "nvfp4": (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "format nvfp4-pack-quantized is not"),
    "packed floats": (compressed("pack-quantized", num_bits=4, type="float"), "pack-quantized of 4-bit float"),
    "turned": (compressed("int-quantized") | {"transform_config": {"config_groups": {"R1": {}}}}, "with transform_config"),
    "sparse": (compressed("int-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "with sparsity_config"),
    "nothing said": ({"quant_method": "compressed-tensors", "config_groups": {}}, "several schemes for weights, or none"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_layout_that_is_not_read_is_named(case: str, saved: Any, tmp_path: Path) -> None:
    config, says = REFUSED[case]
    save_llama(tmp_path)
    edit(tmp_path, config)

    with pytest.raises(ConfigFailure, match=says):
        weights_of(tmp_path)


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {n: t for n, t in tensors.items() if n != f"{Q_PROJ}.{name}"}


def with_other(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: tensors | {f"{Q_PROJ}.{name}": change(tensors[f"{Q_PROJ}.{name}"])}


SPOILED: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "scales missing": ("awq", without("scales"), f"the quantized {Q_PROJ} has no tensor {Q_PROJ}.scales"),
    "zeros missing": ("gptq-4", without("qzeros"), f"has no tensor {Q_PROJ}.qzeros"),
    "words missing": ("awq", without("qweight"), f"has no tensor {Q_PROJ}.weight, but {Q_PROJ}.qzeros"),
    "scales short": ("awq", with_other("scales", lambda t: t[:1]), r"scales is \[1, 64\], and should be \[2, 64\]"),
    "zeros as floats": ("gptq-4", with_other("qzeros", lambda t: t.float()), "qzeros is F32, and should be I32"),
    "words of another size": ("awq", with_other("qweight", lambda t: t[:32]), r"qzeros is \[2, 8\], and should be \[1, 8\]"),
    "groups that do not fit": ("awq", with_other("qweight", lambda t: t[:40]), "rows of 40, which groups of 32 do not"),
    "order too long": ("gptq-4-desc-act", with_other("g_idx", lambda t: t + 1), "g_idx names groups 1 to 2, and there are 2"),
    "scale missing": ("fp8-block", without("weight_scale_inv"), f"has no tensor {Q_PROJ}.weight_scale_inv"),
    "scale of no block": ("fp8-block", with_other("weight_scale_inv", lambda t: t[:, :1]), r"\[2, 1\], and should be \[2, 2\]"),
    "no zero points": ("compressed-int8-asymmetric", without("weight_zero_point"), "weight_zero_point"),
    "another shape": ("compressed-packed-4", with_other("weight_shape", lambda t: t * 2), "weight_packed is"),
    "a scale of no number": ("awq", with_other("scales", lambda t: t * torch.nan), "q_proj has a scale which is no finite"),
    "a number that is none": (
        "fp8-channel", with_other("weight", lambda t: t.view(torch.uint8).fill_(255).view(torch.float8_e4m3fn)), "NaN: its file",
    ),
    "one too many": ("awq", lambda tensors: tensors | {"extra.qweight_too": torch.zeros(1)}, "extra.qweight_too the first"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_quantized_checkpoint_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    method, spoil, says = SPOILED[case]
    save_quantized(method, tmp_path)
    rename_tensors(tmp_path, spoil)

    with pytest.raises(WeightsFailure, match=says):
        load(tmp_path)


def test_a_quantized_checkpoint_that_does_not_say_so_is_seen_by_its_tensors(saved: Any, tmp_path: Path) -> None:
    save_quantized("awq", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "quantization_config"}))

    with pytest.raises(WeightsFailure, match=r"q_proj.qweight, .*: is config.json without its quantization_config\?"):
        load(tmp_path)


def test_a_quantized_gpt2_is_refused(tmp_path: Path) -> None:
    save_case("gpt2", tmp_path)
    edit(tmp_path, METHODS["gptq-4"].said)

    with pytest.raises(ConfigFailure, match="a quantized gpt2 is not supported yet"):
        read_spec(tmp_path)


# --- the option, and the whole engine -----------------------------------------------------------------------------


def test_the_option_knows_every_scheme() -> None:
    assert set(get_args(Quantization)) == {"auto", *SCHEMES}


@pytest.mark.parametrize(
    ("method", "wanted", "says"),
    [
        ("awq", "gptq", "--quantization gptq, but the checkpoint is quantized by awq: leave the option out"),
        (None, "fp8", "--quantization fp8, but the checkpoint is not quantized"),
    ],
)
def test_another_method_than_the_checkpoints_is_refused(
    method: str | None, wanted: Any, says: str, tmp_path: Path
) -> None:
    if method:
        save_quantized(method, tmp_path)
    else:
        save_llama(tmp_path)

    with pytest.raises(ConfigFailure, match=says):
        build_engine(EngineConfig(model=str(tmp_path), quantization=wanted))


@pytest.mark.parametrize(
    ("ops", "says"), [(REFERENCE, "stay in few bits"), (None, "were dequantised while they were read")]
)
def test_an_engine_serves_a_quantized_model_and_says_what_memory_it_takes(
    ops: Ops | None, says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """On a table of kernels which takes it as it is, and on one that does not."""
    oracle = save_quantized("awq", tmp_path)
    config = EngineConfig(model=str(tmp_path), quantization="awq", dtype="float32", kv_cache_gib=0.01)

    with caplog.at_level("INFO", logger="quire.engine"):
        engine = build_engine(config, ops=ops).engine
    params = TokenParams(max_tokens=8, min_tokens=8, temperature=0.0)
    engine.add(Request(id=RequestId(1), prompt=tuple(PROMPT), params=params))
    tokens: list[int] = []
    while engine.has_work:
        tokens += [token for token in engine.step().tokens if token >= 0]

    theirs = oracle.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert tokens == theirs[0, len(PROMPT) :].tolist()
    assert says in caplog.text


def test_the_memory_plan_is_of_the_dequantised_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its files would need is not enough."""
    save_quantized("awq", tmp_path)
    plain = read_spec(tmp_path).shape.weight_bytes("float32")
    assert (tmp_path / "model.safetensors").stat().st_size < plain / 2
    monkeypatch.setattr("quire_engine.runtime.room.free_bytes", lambda device: plain - 1)

    with pytest.raises(MemoryFailure, match="once they are dequantised to float32"):
        build_engine(EngineConfig(model=str(tmp_path)))


# ---------------------------------------------------------------------- MXFP4


def save_mxfp4(folder: Path) -> Any:
    """A gpt-oss whose experts are random codes; what transformers makes of these by its own means."""
    oracle = save_model("GptOssForCausalLM", {**CASES["gpt-oss"].settings, "intermediate_size": 96}, folder)
    torch.manual_seed(0)
    plain = {}

    def coded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, into, out = tensors.pop(name).shape
            blocks = torch.randint(0, 256, (experts, out, into // 32, 16), dtype=torch.uint8)
            scales = torch.randint(122, 126, (experts, out, into // 32), dtype=torch.uint8)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        return tensors

    rename_tensors(folder, coded)
    edit(folder, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    oracle.load_state_dict(plain, strict=False)
    return oracle


def test_experts_of_mxfp4_are_what_transformers_makes_of_them(tmp_path: Path) -> None:
    oracle = save_mxfp4(tmp_path)

    ours = logits_of(read_spec(tmp_path), load(tmp_path), PROMPT)

    with torch.no_grad():
        theirs = oracle(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, n: t.pop(f"{n}_scales"), "has no tensor"),
        (lambda t, n: t.update({f"{n}_scales": t[f"{n}_scales"].fill_(255)}), "a scale which is no number"),
        (lambda t, n: t.update({f"{n}_blocks": t[f"{n}_blocks"][..., :8]}), "and should be"),
        (lambda t, n: t.update({f"{n}_scales": t[f"{n}_scales"].float()}), "is F32, and should be U8"),
    ],
)
def test_damaged_experts_of_mxfp4_are_refused(change: Any, says: str, tmp_path: Path) -> None:
    save_mxfp4(tmp_path)
    name = "model.layers.1.mlp.experts.down_proj"

    def damaged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        change(tensors, name)
        return tensors

    rename_tensors(tmp_path, damaged)

    with pytest.raises(WeightsFailure, match=says):
        load(tmp_path)
