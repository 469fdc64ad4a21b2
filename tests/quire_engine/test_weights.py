"""A checkpoint that is not whole is never loaded, and the message says what is wrong with it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.checkpoints import save_llama

from quire_api import EngineConfig
from quire_engine.build import build_engine
from quire_engine.errors import ConfigFailure, EngineFailure, MemoryFailure, WeightsFailure


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


SPOILED: dict[str, tuple[Callable[[Path], object], type[EngineFailure], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), WeightsFailure, "there is no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), WeightsFailure, "config.json cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), WeightsFailure, "is not a JSON object"),
    "size missing": (lambda f: edit_config(f, hidden_size=None), WeightsFailure, "has no hidden_size"),
    "size wrong": (lambda f: edit_config(f, intermediate_size=95), WeightsFailure, "but config.json makes it"),
    "a layer too few": (
        lambda f: edit_config(f, num_hidden_layers=2),
        WeightsFailure,
        "tensors the model does not know",
    ),
    "a layer too many": (lambda f: edit_config(f, num_hidden_layers=4), WeightsFailure, "has no tensor model.layers.3"),
    "size as text": (lambda f: edit_config(f, hidden_size="64"), WeightsFailure, "config.json"),
    "no family": (lambda f: edit_config(f, architectures=[]), WeightsFailure, "value of the wrong kind"),
    "unknown family": (
        lambda f: edit_config(f, architectures=["MambaForCausalLM"]),
        ConfigFailure,
        "MambaForCausalLM is not supported",
    ),
    "unknown rope": (
        lambda f: edit_config(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        ConfigFailure,
        "'yarn' is not supported",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), WeightsFailure, "model.safetensors is missing"),
    "weights cut short": (cut_short, WeightsFailure, "damaged or cut short"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), WeightsFailure, "tokenizer.json cannot be read"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_spoiled_checkpoint_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    spoil, failure, says = SPOILED[case]
    save_llama(tmp_path, num_attention_heads=4, num_key_value_heads=2)
    spoil(tmp_path)

    with pytest.raises(failure, match=says):
        build_engine(EngineConfig(model=str(tmp_path), kv_cache_gib=0.01))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("/nowhere", "no model at /nowhere: there is no such folder"),
        ("file:///nowhere", "no model at /nowhere"),
        ("builtin://llama-9", "no such model ships with this engine"),
        ("hf://org/model", "hf:// is not supported yet"),
    ],
)
def test_a_missing_model_is_named(model: str, says: str) -> None:
    with pytest.raises(WeightsFailure, match=says):
        build_engine(EngineConfig(model=model))


@pytest.mark.parametrize(
    ("options", "failure", "says"),
    [
        ({"max_model_len": 4096}, ConfigFailure, "is more than the 2048 tokens the model was trained for"),
        ({"kv_cache_gib": 4096}, MemoryFailure, "GiB that are free"),
        (
            {"kv_cache_gib": 0.001, "max_model_len": 2048},
            MemoryFailure,
            "lower --max-model-len or raise --kv-cache-gib",
        ),
    ],
)
def test_a_cache_that_cannot_be_is_refused_with_numbers(
    options: dict[str, object], failure: type[EngineFailure], says: str
) -> None:
    with pytest.raises(failure, match=says):
        build_engine(EngineConfig.model_validate({"model": "builtin://quire-tiny", **options}))
