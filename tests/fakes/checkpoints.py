"""Small random models on disk, as transformers writes them, and transformers itself as the oracle."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from quire_engine.locate import locate_model

__all__ = ["SHAPES", "save_llama", "tiny_folder"]

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "multi-head": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "untied": {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False},
    "wide-heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48},
    "biases": {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    "theta": {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500000.0},
}


def save_llama(folder: Path, *, shards: str = "5GB", **changes: Any) -> LlamaForCausalLM:
    """A llama with weights large enough that the best token wins by a margin; written to `folder`."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "max_position_embeddings": 256, "initializer_range": 0.35, "tie_word_embeddings": True,
        "bos_token_id": None, "eos_token_id": None, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder, max_shard_size=shards)
    for name in ("tokenizer.json", "tokenizer_config.json"):  # the engine wants one; its ids are never used
        (folder / name).write_bytes((tiny_folder() / name).read_bytes())
    return model


def tiny_folder() -> Path:
    return locate_model("builtin://quire-tiny")
