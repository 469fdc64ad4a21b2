"""GGUF files, which llama.cpp's own library has written: names, order of rows, blocks, what metadata says of the model."""

import functools
import json
import struct
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from fakes import checkpoints
from fakes.checkpoints import DECODER, LLAMA3, YARN, Case, rope, tiny_folder
from fakes.gguf_files import PACKED, blocks_of, save_gguf
from fakes.logits import logits_of
from gguf import GGUFValueType as Value

from quire_engine.errors import ConfigFailure, EngineFailure, WeightsFailure
from quire_engine.fetch.choose import Choice
from quire_engine.fetch.errors import WeightsCorrupt
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.local import verify_folder
from quire_engine.fetch.resolving import resolve_line
from quire_engine.gguf.container import gguf_file
from quire_engine.layers.rotary import rotary_table
from quire_engine.locate import locate_model
from quire_engine.models import GENERATORS
from quire_engine.models.weights import Weights, saved_bytes
from quire_engine.ops.packed import Kind
from quire_engine.ops.reference import reference_ops
from quire_engine.quant import scheme_of
from quire_engine.quant.blocks import READERS
from quire_engine.spec import read_spec
from quire_engine.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
PROMPT = [(7 * i + 3) % 128 for i in range(40)]
K = ("Q4_K", "Q5_K", "Q6_K")
WIDE = {**DECODER, "hidden_size": 256, "intermediate_size": 256, "tie_word_embeddings": False, "num_hidden_layers": 2}

# Beside those of `fakes.checkpoints`: rows of a whole block of 256, and what rope becomes in metadata.
MORE = {
    "llama-wide": Case("LlamaForCausalLM", "", WIDE),
    "qwen2-untied": Case("Qwen2ForCausalLM", "", {**DECODER, "tie_word_embeddings": False}),
    "llama-llama3": Case("LlamaForCausalLM", "", {**rope("llama3", **LLAMA3), "head_dim": 16}),
    "llama-linear": Case("LlamaForCausalLM", "", rope("linear", factor=3.0)),
    "qwen3-yarn": Case("Qwen3ForCausalLM", "", {**rope("yarn", **YARN), "head_dim": 24}),
}


@functools.cache
def saved_gguf(case: str, kind: str, folder: Path) -> Any:
    folder.mkdir()
    return save_gguf(case, kind, folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, str], tuple[Path, Any]]]:
    """Case and kind -> the folder, and the dequantised model in transformers; written once."""
    base = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "CASES", checkpoints.CASES | MORE)
        yield lambda case, kind: (base / f"{case}-{kind}", saved_gguf(case, kind, base / f"{case}-{kind}"))
    saved_gguf.cache_clear()


def load(place: Path, keeps: Collection[Kind] = ()) -> Any:
    spec = read_spec(place)
    with Weights(place, torch.float32, CPU, scheme_of(spec.quantization), keeps) as weights:
        return GENERATORS[spec.architecture](spec, weights, reference_ops(), CPU)


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        *[("llama", kind) for kind in sorted(PACKED)],
        *[("llama-wide", kind) for kind in K],
        ("llama-untied", "Q8_0"),
        ("llama-multi-head", "F32"),
        ("llama-llama3", "F32"),
        ("llama-linear", "F32"),
        ("llama-theta", "F32"),
        ("qwen2", "Q8_0"),
        ("qwen2-untied", "Q4_0"),
        ("qwen3", "Q8_0"),
        ("qwen3-biases", "F32"),
        ("qwen3-yarn", "F32"),
    ],
)
def test_logits_are_those_of_the_dequantised_model(case: str, kind: str, saved: Any) -> None:
    folder, oracle = saved(case, kind)

    ours = logits_of(read_spec(folder), load(folder), PROMPT)

    with torch.inference_mode():
        theirs = oracle(torch.tensor([PROMPT])).logits[0]
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.mark.parametrize(("case", "kind"), [("llama-untied", "Q8_0"), ("qwen2-untied", "Q4_0"), ("llama", "Q4_0")])
def test_blocks_of_a_number_and_a_scale_stay_in_few_bits(case: str, kind: str, saved: Any) -> None:
    """Also those whose rows come back into another order."""
    folder, _ = saved(case, kind)
    spec, keeps = read_spec(folder), reference_ops().keeps

    ours = logits_of(spec, load(folder, keeps), PROMPT)

    assert torch.equal(ours, logits_of(spec, load(folder), PROMPT))
    assert saved_bytes(folder, torch.float32, scheme_of(spec.quantization), keeps, spec.shape.layers) > 0


@pytest.mark.parametrize("kind", K)
def test_blocks_of_random_bytes_mean_what_the_library_says(kind: str) -> None:
    raw = blocks_of(kind, 7, 512)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]

    ours = READERS[kind](torch.from_numpy(raw).view(-1, size)).reshape(7, 512)

    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind])
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("case", "kind", "dtype"),
    [
        ("llama", "F32", "float32"),
        ("llama", "F16", "float16"),
        ("llama", "Q8_0", "bfloat16"),
        ("qwen3", "Q8_0", "bfloat16"),
    ],
)
def test_metadata_says_what_config_json_said(case: str, kind: str, dtype: str, saved: Any, tmp_path: Path) -> None:
    folder, _ = saved(case, kind)
    (tmp_path / "config.json").write_text((folder / "plain.json").read_text())

    ours, plain = read_spec(folder), read_spec(tmp_path)

    assert (ours.shape, ours.architecture, ours.ropes, ours.windows) == (
        plain.shape, plain.architecture, plain.ropes, plain.windows,
    )  # fmt: skip
    assert abs(ours.norm_epsilon - plain.norm_epsilon) < 1e-9
    assert ours.trained_len == plain.trained_len
    assert ours.dtype == dtype


def test_divided_frequencies_are_those_of_llama3(saved: Any, tmp_path: Path) -> None:
    folder, _ = saved("llama-llama3", "F32")
    (tmp_path / "config.json").write_text((folder / "plain.json").read_text())
    ours, plain = (read_spec(place).ropes[0] for place in (folder, tmp_path))
    assert ours is not None
    assert plain is not None

    assert ours.kind == "divided"
    torch.testing.assert_close(rotary_table(ours, 200, CPU), rotary_table(plain, 200, CPU), rtol=1e-4, atol=1e-4)


def test_an_answer_ends_with_any_of_the_tokens_that_end_one(tmp_path: Path) -> None:
    ends = {
        f"tokenizer__ggml__{name}_token_id": (Value.UINT32, token)
        for name, token in (("eos", 5), ("eot", 9), ("eom", 5))
    }
    save_gguf("llama", "F16", tmp_path, **ends)

    assert read_spec(tmp_path).end_tokens == {5, 9}


# --- where it is --------------------------------------------------------------------------------------------------


def test_a_file_or_the_folder_of_the_only_one_is_a_model(saved: Any) -> None:
    folder, _ = saved("llama", "Q8_0")
    file = folder / "model.gguf"

    assert locate_model(str(file)) == file
    assert locate_model(str(folder)) == folder
    assert locate_model(f"file://{file}") == file
    assert read_spec(file) == read_spec(folder)


def test_of_several_files_one_has_to_be_named(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()

    with pytest.raises(WeightsFailure, match=r"holds 2 GGUF files; give the path of one: a.gguf, b.gguf"):
        locate_model(str(tmp_path))
    assert gguf_file(tmp_path / "b.gguf") == tmp_path / "b.gguf"


def test_safetensors_go_before_a_gguf_file_beside_them(tmp_path: Path) -> None:
    for name in ("model.gguf", "model.safetensors"):
        (tmp_path / name).touch()

    assert gguf_file(tmp_path) is None


def test_the_tokenizer_is_the_one_beside_the_file(saved: Any) -> None:
    file = saved("llama", "Q8_0")[0] / "model.gguf"

    with pytest.raises(WeightsFailure, match=r"has no tokenizer.json: put the one of the model there"):
        Tokenizer(file, 128)

    (file.parent / "tokenizer.json").write_bytes((tiny_folder() / "tokenizer.json").read_bytes())
    assert Tokenizer(file, 128).encode("a", add_special_tokens=False)


def test_its_footprint_is_known_before_an_engine_starts(saved: Any) -> None:
    """Of the dequantised model: 2 bytes a number, though a file of Q8_0 has little more than one."""
    folder, oracle = saved("llama", "Q8_0")

    told = [json.loads(resolve_line(str(place), Choice(), Halt())) for place in (folder / "model.gguf", folder)]

    assert [each["quantization"] for each in told] == ["gguf", "gguf"]
    assert told[0]["weightBytes"] == told[1]["weightBytes"] == 2 * oracle.num_parameters()
    assert told[0]["bytes"] == (folder / "model.gguf").stat().st_size


def test_a_file_that_was_cut_is_found_by_verifying(saved: Any, tmp_path: Path) -> None:
    data = (saved("llama", "Q8_0")[0] / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data)
    verify_folder(tmp_path, hashes=True)

    (tmp_path / "model.gguf").write_bytes(data[:-100])

    with pytest.raises(WeightsCorrupt, match="damaged or cut short"):
        verify_folder(tmp_path, hashes=True)


# --- what is refused ----------------------------------------------------------------------------------------------


def cut(count: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-count]


def changed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A part of the header that is there once."""

    def change(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return change


def number(key: str, value: int) -> Callable[[bytes], bytes]:
    """Another value of a u32 in the metadata."""

    def change(data: bytes) -> bytes:
        at = data.index(key.encode()) + len(key) + 4
        return data[:at] + struct.pack("<I", value) + data[at + 4 :]

    return change


def kind_of_first_tensor(kind: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = data.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 16
        return data[:at] + struct.pack("<I", kind) + data[at + 4 :]

    return change


SPOILED: dict[str, tuple[Callable[[bytes], bytes], type[EngineFailure], str]] = {
    "nothing": (lambda data: b"", WeightsFailure, "damaged or cut short"),
    "another file": (lambda data: b"PK" + data, WeightsFailure, "it does not begin with GGUF"),
    "cut in the tensors": (cut(100), WeightsFailure, r"\w ends at byte \d+, and the file has"),
    "cut in the header": (lambda data: data[:200], WeightsFailure, "ends at byte 200, in the middle of its header"),
    "version 1": (lambda data: data[:4] + b"\1\0\0\0" + data[8:], ConfigFailure, "GGUF version 1 is not supported"),
    "big-endian": (lambda data: data[:4] + b"\0\0\0\3" + data[8:], ConfigFailure, "big-endian GGUF is not supported"),
    "endless metadata": (lambda data: data[:16] + b"\xff" * 8 + data[24:], WeightsFailure, "damaged or cut short"),
    "endless name": (lambda data: data[:24] + b"\xff" * 8 + data[32:], WeightsFailure, "in the middle of its header"),
    "another family": (changed(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0mamba"), ConfigFailure, "GGUF of a mamba"),
    "no blocks": (number("llama.block_count", 0), ConfigFailure, "llama.block_count is 0, and should be a number"),
    "a layer too few": (
        number("llama.block_count", 2),
        WeightsFailure,
        "has 9 tensors the model does not know, model.layers.2",
    ),
    "another width": (number("llama.feed_forward_length", 64), WeightsFailure, r"is \[96, 64\] .* makes it \[64, 64\]"),
    "heads that do not fit": (
        number("llama.attention.head_count", 3),
        WeightsFailure,
        "3 attention heads cannot share 2",
    ),
    "a kind we know by name": (kind_of_first_tensor(23), ConfigFailure, "token_embd.weight is IQ4_XS, which is not"),
    "a kind of tomorrow": (
        kind_of_first_tensor(99),
        ConfigFailure,
        "is of type 99, which is not supported yet, only F32",
    ),
    "blocks that do not fit": (kind_of_first_tensor(12), WeightsFailure, r"is \[128, 64\], and Q4_K has blocks of 256"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_file_is_refused_in_a_sentence(case: str, saved: Any, tmp_path: Path) -> None:
    spoil, failure, says = SPOILED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(spoil((saved("llama", "Q8_0")[0] / "model.gguf").read_bytes()))

    with pytest.raises(failure, match=says):
        load(path)


@pytest.mark.parametrize("length", range(0, 1400, 97))
def test_a_header_cut_anywhere_is_damaged(length: int, saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes((saved("llama", "Q8_0")[0] / "model.gguf").read_bytes()[:length])

    with pytest.raises(WeightsFailure, match="damaged or cut short"):
        read_spec(path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "experts": ({"llama__expert_count": (Value.UINT32, 8)}, "GGUF of a mixture of experts"),
    "a part": ({"split__count": (Value.UINT16, 3)}, "one of 3 parts: join them with"),
    "half turned": ({"llama__rope__dimension_count": (Value.UINT32, 8)}, "rope.dimension_count 8 is not supported yet"),
    "long rope": (
        {
            "llama__rope__scaling__type": (Value.STRING, "longrope"),
            "llama__rope__scaling__factor": (Value.FLOAT32, 2.0),
        },
        "rotary embedding 'longrope' of a llama is not supported yet",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_metadata_may_say_and_we_do_not_compute_is_refused(case: str, tmp_path: Path) -> None:
    metadata, says = REFUSED[case]
    save_gguf("llama", "F16", tmp_path, **metadata)

    with pytest.raises(ConfigFailure, match=says):
        read_spec(tmp_path)


def test_a_tensor_too_many_is_left_over(tmp_path: Path) -> None:
    save_gguf("qwen3", "F16", tmp_path)
    path = tmp_path / "model.gguf"
    path.write_bytes(path.read_bytes().replace(b"blk.2.attn_q_norm.weight", b"blk.2.attn_x_norm.weight"))

    with pytest.raises(WeightsFailure, match=r"has no tensor model.layers.2.self_attn.q_norm.weight"):
        load(tmp_path)


def test_plain_config_json_beside_it_is_not_asked(tmp_path: Path) -> None:
    """Repositories have one of another dialect, or of the unquantized model; the file itself is right."""
    save_gguf("llama", "F16", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))

    assert read_spec(tmp_path).architecture == "LlamaForCausalLM"
