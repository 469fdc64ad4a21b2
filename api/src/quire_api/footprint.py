"""How many bytes a model needs: arithmetic on the sizes in its config.json, nothing loaded.

Exact for every family of `FAMILIES`: tests compare with transformers' own counts, and with the file of quire-tiny.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["CACHE_BYTES", "DTYPE_BYTES", "FAMILIES", "KEPT", "Footprint", "ModelShape", "stated_dtype"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CACHE_BYTES = DTYPE_BYTES | {"fp8": 1}  # of a number in the KV cache

KEPT = ("awq", "gptq", "fp8", "compressed-tensors", "gguf")  # methods whose weights may stay in few bits on a GPU

# model_type -> what its config.json does not say, because every model of the family has it or because it is the default.
FAMILIES: dict[str, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "head_dim": 128},
    "qwen3_moe": {"qk_norm": True},
    "deepseek_v2": {"latent": True},
    "deepseek_v3": {"latent": True},
    "gpt_oss": {"head_dim": 64, "kv_heads": 8, "attention_bias": True, "sinks": True, "expert_bias": True},
    "gemma2": {"norms": 4, "tied": True, "head_dim": 256},
    "gemma3_text": {"norms": 4, "tied": True, "head_dim": 256, "qk_norm": True},
    "gpt2": {"tied": True, "gated": False, "biased": True, "learned_positions": True, "inner": 4},
    "bloom": {"tied": True, "gated": False, "biased": True, "embedding_norm": True, "inner": 4},
    "bert": {"tied": True, "gated": False, "biased": True, "learned_positions": True},
}

EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # what families call it

HEADLESS = ("BertModel", "BertForMaskedLM", "Qwen3Model")  # architectures that the engine reads without an output head

EXPERT_WIDTHS = {
    "mixtral": "intermediate_size",
    "qwen3_moe": "moe_intermediate_size",
    "deepseek_v2": "moe_intermediate_size",
    "deepseek_v3": "moe_intermediate_size",
    "gpt_oss": "intermediate_size",
}  # families that have experts

NAMES = {  # what families call a size, where they do
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "intermediate_size": "n_inner",
    },
    "bloom": {"hidden_size": "n_embed", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
}


def stated_dtype(config: Mapping[str, Any]) -> str | None:
    """The format of the plain weights, as far as config.json says."""
    said = config.get("dtype") or config.get("torch_dtype")
    quantized = config.get("quantization_config")
    if not said and isinstance(quantized, Mapping) and quantized.get("quant_method") == "mxfp4":
        return "bfloat16"  # gpt-oss as it was published says nothing else
    return str(said).removeprefix("torch.") if said else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a transformer."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # one matrix is both the embedding and the output head
    headless: bool = False  # there is no output head

    latent: int = 0  # numbers that all heads' keys and values of a token are made of (MLA); 0: it has keys and values
    latent_query: int = 0  # numbers of a token that its queries are made of; 0: they are made of its hidden state
    rotary: int = 0  # of a key's `head_dim` numbers, those that are the same for all heads, and not made of latent ones
    value_dim: int = 0  # numbers of a value that is made of latent ones
    values_beside: bool = False  # the cache has latent numbers twice, as keys and as values

    qkv_bias: bool = False
    out_bias: bool = False  # of the attention's output
    qk_norm: bool = False  # an RMS norm of each query and key head
    sinks: bool = False  # a number of each query head
    gated: bool = True  # the feed-forward has a gate
    mlp_bias: bool = False
    experts: int = 0  # feed-forwards to choose from in each sparse layer
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0  # of one feed-forward more, which is for every token
    expert_bias: bool = False  # of experts and of their router
    sparse: tuple[int, ...] = ()  # layers that have experts; the others have one feed-forward
    norms: int = 2  # of a layer
    norm_bias: bool = False
    embedding_norm: bool = False  # one more, of what goes into the first layer
    positions: int = 0  # rows of a learned position embedding
    token_types: int = 0  # rows of BERT's embedding of the text's parts

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; KeyError names what is missing, TypeError what is no number, ValueError what cannot be."""
        family = config.get("model_type", "llama")
        if family not in FAMILIES:
            raise ValueError(f"model_type is {family!r}, and should be one of {', '.join(FAMILIES)}")
        traits = FAMILIES[family]
        names = {name: theirs for name, theirs in NAMES.get(family, {}).items() if theirs in config}

        def size(name: str, default: int | None = None) -> int:
            name = names.get(name, name)
            value = config[name] if default is None else config.get(name)
            if value is None and default is not None:
                return default
            if not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}, and should be a number")
            return value

        heads, hidden = size("num_attention_heads"), size("hidden_size")
        latent = size("kv_lora_rank") if traits.get("latent") else 0
        rotary = size("qk_rope_head_dim") if latent else 0
        kv_heads = 1 if latent else size("num_key_value_heads", traits.get("kv_heads", heads))
        if heads % kv_heads:
            raise ValueError(f"{heads} attention heads cannot share {kv_heads} key-value heads evenly")
        biased = traits.get("biased", False)
        attention_bias = bool(config.get("attention_bias", traits.get("attention_bias", biased)))
        layers = size("num_hidden_layers")
        sparse = _sparse(family, config, layers)
        return cls(
            layers=layers,
            hidden=hidden,
            intermediate=size("intermediate_size", traits["inner"] * hidden if "inner" in traits else None),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=rotary + size("qk_nope_head_dim")
            if latent
            else size("head_dim", traits.get("head_dim", hidden // heads)),
            latent=latent,
            latent_query=size("q_lora_rank", 0) if latent else 0,
            rotary=rotary,
            value_dim=size("v_head_dim") if latent else 0,
            vocabulary=size("vocab_size"),
            tied=config.get("tie_word_embeddings", traits.get("tied", False)),
            headless=(config.get("architectures") or [""])[0] in HEADLESS,
            qkv_bias=traits.get("qkv_bias", attention_bias),
            out_bias=attention_bias,
            qk_norm=traits.get("qk_norm", False),
            gated=traits.get("gated", True),
            mlp_bias=bool(config.get("mlp_bias", biased)),
            experts=size(next((name for name in EXPERT_COUNTS if name in config), EXPERT_COUNTS[0])) if sparse else 0,
            experts_per_token=size("num_experts_per_tok") if sparse else 0,
            expert_intermediate=size(EXPERT_WIDTHS[family]) if sparse else 0,
            shared_intermediate=size("n_shared_experts", 0) * size(EXPERT_WIDTHS[family]) if sparse and latent else 0,
            expert_bias=traits.get("expert_bias", False),
            sinks=traits.get("sinks", False),
            sparse=sparse,
            norms=traits.get("norms", 2),
            norm_bias=biased,
            embedding_norm=traits.get("embedding_norm", False),
            positions=size("max_position_embeddings") if traits.get("learned_positions") else 0,
            token_types=size("type_vocab_size", 2) if family == "bert" else 0,
        )

    @property
    def parameters(self) -> int:
        """What the engine computes with: of BERT neither pooler nor heads."""
        inner = self.intermediate * (2 if self.gated else 1)
        mlp = self.hidden * (inner + self.intermediate) + (inner + self.hidden) * self.mlp_bias
        experts = self.experts * self.hidden * (3 * self.expert_intermediate + 1)  # and a row of the router each
        experts += self.experts * (2 * self.expert_intermediate + self.hidden + 1) * self.expert_bias
        experts += 3 * self.hidden * self.shared_intermediate
        norm = self.hidden * (2 if self.norm_bias else 1)
        matrices = 1 if self.tied or self.headless else 2
        rows = self.vocabulary * matrices + self.positions + self.token_types
        feed_forwards = (self.layers - len(self.sparse)) * mlp + len(self.sparse) * experts
        return (
            self.layers * (self._attention + self.norms * norm)
            + feed_forwards
            + rows * self.hidden
            + norm * (1 + self.embedding_norm)
        )

    @property
    def _attention(self) -> int:
        """Parameters of one layer's."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.latent:
            query, made = self.latent_query, self.head_dim - self.rotary + self.value_dim
            down = (self.hidden + self.qkv_bias) * (query + self.latent + self.rotary)
            down += query + self.latent  # their norms
            up = (query or self.hidden) * q + self.latent * self.heads * made
            return down + up + (self.heads * self.value_dim + self.out_bias) * self.hidden
        parameters = self.hidden * (q + 2 * kv) + q * self.hidden
        parameters += (q + 2 * kv) * self.qkv_bias + self.hidden * self.out_bias + 2 * self.head_dim * self.qk_norm
        return parameters + self.heads * self.sinks

    @property
    def cached(self) -> tuple[int, int]:
        """Numbers of a key, and of a value, as attention is computed of them and the cache has them."""
        if self.latent:
            return self.rotary + self.latent, self.latent if self.values_beside else 0
        return self.head_dim, self.head_dim

    @property
    def per_pair(self) -> int:
        """Multiplications of attention for each pair of a query head and a token."""
        return self.rotary + 2 * self.latent if self.latent else 2 * self.head_dim

    @property
    def widths(self) -> tuple[int, ...]:
        """How many columns the feed-forwards have inside."""
        dense = (self.intermediate,) if len(self.sparse) < self.layers else ()
        shared = (self.shared_intermediate,) if self.shared_intermediate else ()
        return dense + shared + ((self.expert_intermediate,) if self.sparse else ())

    def weight_bytes(self, dtype: str) -> int:
        """As a file; in memory norms and biases are float32, which of a real model adds next to nothing."""
        return self.parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        return self.layers * self.kv_heads * sum(self.cached) * CACHE_BYTES[dtype]


def _sparse(family: str, config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The layers that have experts."""
    if family not in EXPERT_WIDTHS:
        return ()
    dense, every = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    first = config.get("first_k_dense_replace", 3 if family == "deepseek_v3" else 0)
    return tuple(i for i in range(first, layers) if i not in dense and (i + 1) % every == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """As much of a model's shape as it takes to say how much memory it needs."""

    parameters: int
    kv_values_per_token: int
    dtype: str  # of the checkpoint
    quantized_bytes: int | None = None  # of its files; None: it is not quantized

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self | None:
        """None where config.json does not tell; the engine says what is wrong with it."""
        dtype = stated_dtype(config) or "float32"
        try:
            shape = ModelShape.from_config(config)
        except (KeyError, TypeError, ValueError):
            return None
        values = shape.kv_bytes_per_token("float16") // DTYPE_BYTES["float16"]
        return cls(parameters=shape.parameters, kv_values_per_token=values, dtype=dtype)
