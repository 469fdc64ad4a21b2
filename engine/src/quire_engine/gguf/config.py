"""What a GGUF file says of its model, in the words of config.json.

spec.py reads it from there on, so that nothing behind it knows two dialects. What metadata may say, and the engine does not
compute, is a ConfigFailure, as it is there.
"""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigFailure, WeightsFailure
from quire_engine.gguf.container import Container, open_container

__all__ = ["config_of"]

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
TURNS = "rope_freqs.weight"  # what the frequency of each pair of a head is divided by


def config_of(path: Path) -> dict[str, Any]:
    """As config.json would have it; quantization_config has what the names and orders of tensors depend on."""
    file = open_container(path)
    said = _Said(file)
    family = said.get("general.architecture")
    if family not in ARCHITECTURES:
        raise ConfigFailure(f"{path}: GGUF of a {family} is not supported yet, only of {', '.join(ARCHITECTURES)}")
    if said.own("expert_count", 0):
        raise ConfigFailure(f"{path}: GGUF of a mixture of experts is not supported yet")
    if (split := said.get("split.count", 1)) > 1:
        raise ConfigFailure(f"{path} is one of {split} parts: join them with `llama-gguf-split --merge`")
    hidden, heads = said.number("embedding_length"), said.number("attention.head_count")
    kv_heads = said.number("attention.head_count_kv", heads)
    head_dim = said.number("attention.key_length", hidden // heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if said.number(name, head_dim) != head_dim:
            raise ConfigFailure(f"{path}: {name} {said.own(name)} is not supported yet, only {head_dim}, as keys have")
    return {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "dtype": _dtype(file),
        "hidden_size": hidden,
        "intermediate_size": said.number("feed_forward_length"),
        "num_hidden_layers": said.number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": _rows(file, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_output.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "hidden_act": "silu",
        "rms_norm_eps": said.own("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": said.number("context_length"),
        "rope_parameters": _rope(file, said, head_dim),
        "eos_token_id": said.ends(),
        "quantization_config": {"quant_method": "gguf", "family": family, "heads": heads, "kv_heads": kv_heads},
    }


class _Said:
    """Metadata by name; those of the architecture without its name before them."""

    def __init__(self, file: Container) -> None:
        self._path, self._all = file.path, file.metadata
        self._own = f"{file.metadata.get('general.architecture')}."

    def get(self, name: str, default: Any = None) -> Any:
        return self._all.get(name, default)

    def own(self, name: str, default: Any = None) -> Any:
        if (value := self._all.get(self._own + name, default)) is None:
            raise WeightsFailure(f"{self._path} does not say {self._own}{name}: is it a language model?")
        return value

    def number(self, name: str, default: int | None = None) -> int:
        value = self.own(name, default)
        if isinstance(value, list) and value and set(value) == {value[0]}:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigFailure(f"{self._path}: {self._own}{name} is {str(value)[:60]}, and should be a number")
        return value

    def ends(self) -> list[int]:
        """Of an answer: of the text, of a turn, of a message."""
        names = ("eos_token_id", "eot_token_id", "eom_token_id")
        found = [self.get(f"tokenizer.ggml.{name}") for name in names]
        return [token for token in dict.fromkeys(found) if token is not None]


def _rows(file: Container, name: str) -> int:
    if name not in file.tensors:
        raise WeightsFailure(f"{file.path} has no tensor {name}: is it a language model?")
    return file.tensors[name].shape[0]


def _dtype(file: Container) -> str:
    """That of its matrices, where they are not quantized; else bfloat16, which holds what is dequantised well enough."""
    kinds = {tensor.type for tensor in file.tensors.values() if len(tensor.shape) > 1}
    return {"F32": "float32", "F16": "float16"}.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"


def _rope(file: Container, said: _Said, head_dim: int) -> dict[str, Any]:
    theta, kind = said.own("rope.freq_base", 10000.0), said.own("rope.scaling.type", "none")
    if TURNS in file.tensors:
        return {"rope_type": "divided", "rope_theta": theta, "divisors": _floats(file, TURNS, head_dim // 2)}
    if kind == "none":
        return {"rope_type": "default", "rope_theta": theta}
    scaling: Mapping[str, Any] = {"rope_type": kind, "rope_theta": theta, "factor": said.own("rope.scaling.factor")}
    if kind == "yarn":
        original = said.number("rope.scaling.original_context_length")
        return {**scaling, "original_max_position_embeddings": original}
    return dict(scaling)


def _floats(file: Container, name: str, count: int) -> list[float]:
    tensor = file.tensors[name]
    if tensor.type != "F32" or tensor.shape != (count,):
        raise WeightsFailure(
            f"{name} is {tensor.type} {list(tensor.shape)} in {file.path}, and should be F32 [{count}]"
        )
    with file.path.open("rb") as data:
        data.seek(tensor.start)
        return list(struct.unpack(f"<{count}f", data.read(tensor.bytes)))
