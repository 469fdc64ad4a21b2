#!/usr/bin/env python3
"""The models of the benchmarks beside peers: real shapes, random weights from a fixed seed, no network.

`write_model` makes the checkpoint (config.json, model.safetensors in bfloat16) which Quire, vLLM and transformers
read. As a script, run by an interpreter that has the `gguf` package, this file makes llama.cpp's model.gguf of such
a folder: the same values under other names.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

Config = dict[str, Any]

COMMON: Config = {
    "attention_bias": False,
    "bos_token_id": 1,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
MODELS: dict[str, Config] = {
    "tiny": {  # 3.9 M parameters
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 4096,
    },
    "0.45b": {  # 449 M parameters
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "vocab_size": 8192,
    },
}

# A checkpoint's name for a tensor, within a layer or outside of one, and llama.cpp's.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_model(name: str, folder: Path) -> None:
    """Nothing happens where the checkpoint is there already, of this very shape."""
    config = COMMON | MODELS[name]
    text = json.dumps(config, indent=2) + "\n"
    described = folder / "config.json"
    if described.exists() and described.read_text() == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").unlink(missing_ok=True)
    save_file(_weights(config), folder / "model.safetensors", metadata={"format": "pt"})
    described.write_text(text)  # last: it stands for the whole


def write_tokenizer(folder: Path) -> None:
    """What a server needs to show tokens as text: one of bytes, then words that no text becomes; prompts are ids."""
    target = folder / "tokenizer.json"
    if target.exists():
        return
    letters = sorted(ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>"]
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    names = [*special, *letters, *(f"Ġw{number}" for number in range(len(special) + len(letters), size))]
    tokenizer = Tokenizer(BPE(vocab={name: number for number, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(special)
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n")
    tokenizer.save(str(target))


def _weights(config: Config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:  # keeps the scale of what it multiplies
        return (torch.randn(rows, columns, generator=generator) * float(columns**-0.5)).bfloat16()

    def norm(size: int) -> torch.Tensor:  # not all ones: a norm that an engine forgets shall show
        return (1 + 0.1 * torch.randn(size, generator=generator)).bfloat16()

    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    tensors = {  # embeddings are small beside what the layers add, or every token would be followed by itself
        "model.embed_tokens.weight": matrix(config["vocab_size"], hidden) * 0.25,
        "model.norm.weight": norm(hidden),
    }
    for number in range(config["num_hidden_layers"]):
        layer = {
            "input_layernorm": norm(hidden),
            "self_attn.q_proj": matrix(queries, hidden),
            "self_attn.k_proj": matrix(keys, hidden),
            "self_attn.v_proj": matrix(keys, hidden),
            "self_attn.o_proj": matrix(hidden, queries),
            "post_attention_layernorm": norm(hidden),
            "mlp.gate_proj": matrix(inner, hidden),
            "mlp.up_proj": matrix(inner, hidden),
            "mlp.down_proj": matrix(hidden, inner),
        }
        if config["model_type"] == "qwen3":
            layer |= {"self_attn.q_norm": norm(head), "self_attn.k_norm": norm(head)}
        tensors |= {f"model.layers.{number}.{part}.weight": tensor for part, tensor in layer.items()}
    return tensors


def write_gguf(folder: Path) -> None:
    import gguf  # type: ignore[import-not-found]  # of the peers' environment alone

    config: Config = json.loads((folder / "config.json").read_text())
    unfinished = folder / "model.gguf.part"
    writer = gguf.GGUFWriter(unfinished, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")  # prompts are token ids
    for name, tensor in load_file(folder / "model.safetensors").items():
        if tensor.dim() == 1:
            writer.add_tensor(_gguf_name(name), tensor.float().numpy())
            continue
        if config["model_type"] == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = _interleave(tensor, config["head_dim"])
        writer.add_tensor(_gguf_name(name), tensor.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(unfinished, folder / "model.gguf")


def _gguf_name(name: str) -> str:
    """'model.layers.3.mlp.up_proj.weight' is 'blk.3.ffn_up.weight'."""
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{GGUF_NAMES[name]}.weight"
    number, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{GGUF_NAMES[part]}.weight"


def _interleave(weight: torch.Tensor, head: int) -> torch.Tensor:
    """Rows of each head from [first half, second half] to pairs (0, half), (1, half + 1)...: llama.cpp's rotary
    embedding of its `llama` architecture turns neighbours; that of `qwen3` turns halves, as checkpoints have it."""
    heads = weight.shape[0] // head
    return weight.view(heads, 2, head // 2, -1).transpose(1, 2).reshape(weight.shape).contiguous()


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]))
