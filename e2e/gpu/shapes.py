"""Models by their shape alone: config.json in a folder, whose weights are made up where they are to be (`--load-format dummy`)."""

import json
from pathlib import Path
from typing import Any

__all__ = ["SHAPES", "SMOKE", "write"]

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16", "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False,
    "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 16384,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "8B": {  # Llama 3.1 8B
        **LLAMA, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False,
    },
    "0.6B": {  # Qwen3 0.6B
        **LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "head_dim": 128,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 3072,
        "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
SMOKE: dict[str, dict[str, Any]] = {
    name: {**SHAPES[name], **SMALL, "intermediate_size": 96, "max_position_embeddings": 512} for name in SHAPES
}
SMOKE["0.6B"]["head_dim"] = 16


def write(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder
