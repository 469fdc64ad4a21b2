"""Small random models on disk, as transformers writes them, and transformers itself as the oracle.

`CASES` is all that is compared; docs/reference/models.md is made of it:

    PYTHONPATH=tests .venv/bin/python -m fakes.checkpoints
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from quire_engine.locate import locate_model
from quire_engine.models import GENERATORS

__all__ = [
    "BLOCK", "CASES", "LENGTHS", "PAGE", "WINDOW", "Case", "models_page", "rename_tensors", "save_case", "save_llama", "save_model",
    "tiny_folder",
]  # fmt: skip

PAGE = Path("docs/reference/models.md")
BLOCK = 16
WINDOW = 20
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, WINDOW - 1, WINDOW, WINDOW + 1, 50]  # of prompts; 32 tokens follow

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "initializer_range": 0.35,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "max_position_embeddings": 256,
}  # fmt: skip
DECODER = {**SMALL, "intermediate_size": 96, "num_key_value_heads": 2, "tie_word_embeddings": True}
GEMMA = {**DECODER, "num_hidden_layers": 4, "head_dim": 24, "sliding_window": WINDOW, "query_pre_attn_scalar": 20}
MOE = {**DECODER, "head_dim": 24, "moe_intermediate_size": 40, "tie_word_embeddings": False}
LATENT = {
    **DECODER,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "moe_intermediate_size": 40,
    "first_k_dense_replace": 1,
    "n_routed_experts": 9,
    "num_experts_per_tok": 3,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
}
BLOOM = {name: value for name, value in SMALL.items() if name != "max_position_embeddings"}
BERT = {**SMALL, "intermediate_size": 96}


@dataclass(frozen=True)
class Case:
    architecture: str  # transformers' class
    about: str  # what is particular, for the page
    settings: dict[str, Any] = field(default_factory=dict)  # of its config

    @property
    def generates(self) -> bool:
        return self.architecture in GENERATORS


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {**DECODER, "rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [1.5 + i for i in range(8)]}
YARN = {"factor": 4.0, "original_max_position_embeddings": 24}
YARN_MORE = {"beta_fast": 4.0, "beta_slow": 1.5, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False}

CASES: dict[str, Case] = {
    "llama": Case("LlamaForCausalLM", "query heads in groups", DECODER),
    "llama-multi-query": Case("LlamaForCausalLM", "one key head", {**DECODER, "num_key_value_heads": 1}),
    "llama-multi-head": Case("LlamaForCausalLM", "a key head each", {**DECODER, "num_key_value_heads": 4}),
    "llama-untied": Case("LlamaForCausalLM", "an output head of its own", {**DECODER, "tie_word_embeddings": False}),
    "llama-wide-heads": Case("LlamaForCausalLM", "heads wider than the model", {**DECODER, "head_dim": 48}),
    "llama-biases": Case("LlamaForCausalLM", "biases", {**DECODER, "attention_bias": True, "mlp_bias": True}),
    "llama-theta": Case("LlamaForCausalLM", "rope theta 500000", rope("default", rope_theta=500000.0)),
    "llama-rope-llama3": Case("LlamaForCausalLM", "rope llama3 (Llama 3.1)", rope("llama3", **LLAMA3)),
    "llama-rope-linear": Case("LlamaForCausalLM", "rope linear", rope("linear", factor=3.0)),
    "llama-rope-dynamic": Case("LlamaForCausalLM", "rope dynamic, up to the trained length", rope("dynamic", factor=2.0)),
    "llama-rope-yarn": Case("LlamaForCausalLM", "rope yarn, beyond the original length", rope("yarn", **YARN)),
    "llama-rope-yarn-scaled": Case(
        "LlamaForCausalLM", "rope yarn with its factors given",
        rope("yarn", factor=4.0, original_max_position_embeddings=200, **YARN_MORE),
    ),
    "mistral": Case("MistralForCausalLM", "a window in every layer", {**DECODER, "sliding_window": WINDOW}),
    "mistral-whole": Case("MistralForCausalLM", "no window", {**DECODER, "sliding_window": None}),
    "qwen2": Case("Qwen2ForCausalLM", "biases of q, k and v", DECODER),
    "qwen2-windows": Case(
        "Qwen2ForCausalLM", "windows in the upper layers",
        {**DECODER, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": Case("Qwen3ForCausalLM", "norms of query and key heads", {**DECODER, "head_dim": 24}),
    "qwen3-biases": Case("Qwen3ForCausalLM", "and biases", {**DECODER, "head_dim": 16, "attention_bias": True}),
    "phi3": Case(
        "Phi3ForCausalLM", "q, k, v in one tensor, gate and up in another, half of a head rotated",
        {**DECODER, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "phi3-longrope": Case(
        "Phi3ForCausalLM", "rope longrope, of texts that may be longer than the original length",
        {**rope("longrope", factor=4.0, attention_factor=1.2, **LONGROPE), "original_max_position_embeddings": 0},
    ),
    "phi3-longrope-short": Case(
        "Phi3ForCausalLM", "rope longrope, of texts that may not (`--max-model-len`)",
        {**rope("longrope", factor=4.0, **LONGROPE), "original_max_position_embeddings": 256},
    ),
    "gemma2": Case(
        "Gemma2ForCausalLM", "softcaps, windows in every other layer",
        {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": False},
    ),
    "gemma3": Case(
        "Gemma3ForCausalLM", "two rope thetas, norms of heads, windows in two of three layers",
        {**GEMMA, "sliding_window_pattern": 3, "initializer_range": 0.08},
    ),
    "gemma3-linear": Case(
        "Gemma3ForCausalLM", "rope linear in the layers without a window",
        {**GEMMA, "sliding_window_pattern": 2, "initializer_range": 0.08, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }},
    ),
    "mixtral": Case(
        "MixtralForCausalLM", "two of five experts",
        {**DECODER, "num_local_experts": 5, "num_experts_per_tok": 2, "tie_word_embeddings": False},
    ),
    "mixtral-window": Case(
        "MixtralForCausalLM", "three of four experts, a window",
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": WINDOW},
    ),
    "qwen3-moe": Case(
        "Qwen3MoeForCausalLM", "three of seven experts, whose shares add up to 1",
        {**MOE, "num_local_experts": 7, "num_experts_per_tok": 3, "norm_topk_prob": True},
    ),
    "qwen3-moe-mixed": Case(
        "Qwen3MoeForCausalLM", "shares as they are, layers without experts, a window",
        {**MOE, "num_hidden_layers": 5, "num_local_experts": 5, "num_experts_per_tok": 2, "norm_topk_prob": False,
         "mlp_only_layers": [1], "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": WINDOW},
    ),
    "gpt-oss": Case(
        "GptOssForCausalLM", "sinks, windows in every other layer, experts with biases",
        {**MOE, "intermediate_size": 40, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "deepseek-v2": Case(
        "DeepseekV2ForCausalLM", "latent keys and values (MLA), a dense layer, experts of the best groups, one for all",
        {**LATENT, "q_lora_rank": 40, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2,
         "routed_scaling_factor": 1.7, "n_shared_experts": 2},
    ),
    "deepseek-v2-lite": Case(
        "DeepseekV2ForCausalLM", "queries that are not latent, all experts to choose from, rope yarn",
        {**LATENT, "q_lora_rank": None, "topk_method": "greedy", "n_shared_experts": 1, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24,
            "mscale": 0.7, "mscale_all_dim": 0.9,
        }},
    ),
    "deepseek-v3": Case(
        "DeepseekV3ForCausalLM", "experts by their own likelihood and a preference, biases",
        {**LATENT, "q_lora_rank": 40, "n_group": 3, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5,
         "n_shared_experts": 1, "attention_bias": True},
    ),
    "deepseek-v3-halves": Case(
        "DeepseekV3ForCausalLM", "rotation in halves, shares as they are",
        {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "rope_interleave": False,
         "n_shared_experts": 1},
    ),
    "gpt2": Case("GPT2LMHeadModel", "learned positions", SMALL),
    "gpt2-narrow": Case(
        "GPT2LMHeadModel", "an inner size of its own, exact gelu", {**SMALL, "n_inner": 80, "activation_function": "gelu"}
    ),
    "bloom": Case("BloomForCausalLM", "no positions, but slopes", {**BLOOM, "num_attention_heads": 4}),
    "bloom-odd": Case("BloomForCausalLM", "heads that are no power of two", {**BLOOM, "hidden_size": 72, "num_attention_heads": 6}),
    "bert": Case("BertModel", "every token sees the whole text", BERT),
    "bert-masked": Case("BertForMaskedLM", "its head is left in the file", {**BERT, "hidden_act": "gelu_new"}),
    "qwen3-encoder": Case("Qwen3Model", "no output head", {**DECODER, "head_dim": 24}),
}  # fmt: skip


def save_case(name: str, folder: Path, *, shards: str = "5GB") -> Any:
    """Write the model to `folder`; the same one, as transformers computes it."""
    return save_model(CASES[name].architecture, CASES[name].settings, folder, shards)


def save_llama(folder: Path, *, shards: str = "5GB", **changes: Any) -> transformers.LlamaForCausalLM:
    """A llama with changed settings, and with the tokenizer of quire-tiny, whose ids are never used."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder() / name).read_bytes())
    return save_model("LlamaForCausalLM", {**DECODER, "rms_norm_eps": 1e-5, **changes}, folder, shards)


def save_model(architecture: str, settings: dict[str, Any], folder: Path, shards: str = "5GB") -> Any:
    """Matrices so large that the best token wins by a margin; norms and biases so random that they matter."""
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    model = model_class(model_class.config_class(**settings)).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        biases = ((name, buffer) for name, buffer in model.named_buffers() if name.endswith("bias"))
        for name, parameter in (*model.named_parameters(), *biases):
            if parameter.ndim == 1 or name.endswith("bias"):
                parameter += torch.randn_like(parameter) * (0.2 if name.endswith("bias") else 0.3)
    model.save_pretrained(folder, max_shard_size=shards)
    return model


def rename_tensors(folder: Path, change: Any) -> None:
    """Write model.safetensors anew with what `change` makes of its tensors."""
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def tiny_folder() -> Path:
    return locate_model("builtin://quire-tiny")


def models_page() -> str:
    """docs/reference/models.md"""
    command = "PYTHONPATH=tests .venv/bin/python -m fakes.checkpoints"
    head = f"""# Models

*Made from tests/fakes/checkpoints.py by `{command}`; do not edit.*

The architecture stands in a checkpoint's config.json. A configuration which the engine does not compute as
transformers does is refused with the value's name, never run differently. Of longrope transformers takes other angles from
token to token, as a text grows beyond the original length; here `--max-model-len` decides once, for all texts.

Each row is a small random checkpoint, written by transformers {transformers.__version__} and compared with it in float32: logits
of prompts of {", ".join(map(str, LENGTHS))} tokens (a block has {BLOCK}, a window {WINDOW}), within 1e-4 of the largest;
32 greedy tokens after prompts of 1 to 50 tokens, equal; the number of parameters, equal.
"""
    return "\n".join(
        [
            head,
            *_table("Text generation", "Each embeds texts too.", generates=True),
            *_table("Embeddings only", "Embeddings are compared instead of logits and tokens.", generates=False),
        ]
    )


def _table(title: str, note: str, *, generates: bool) -> list[str]:
    rows = [
        f"| `{case.architecture}` | {name} | {case.about} |"
        for name, case in CASES.items()
        if case.generates is generates
    ]
    return [
        f"## {title}",
        "",
        note,
        "",
        "| architecture | checkpoint | what is particular |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]


if __name__ == "__main__":
    PAGE.write_text(models_page())


def write_embedder(folder: Path) -> Path:
    """A small BERT that can read text: with the shipped model's tokenizer."""
    save_model("BertModel", {**BERT, "vocab_size": 1024}, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny_folder() / name).read_bytes())
    return folder
