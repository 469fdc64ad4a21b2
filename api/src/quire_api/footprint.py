"""How many bytes a model needs: arithmetic on the shape in its config.json, nothing loaded.

Exact for the llama family (tests compare with transformers, and with the file of quire-tiny).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["DTYPE_BYTES", "ModelShape"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool  # one matrix is both the embedding and the output head
    attention_bias: bool = False
    mlp_bias: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read config.json; KeyError names what is missing, TypeError what is no number."""

        def size(name: str) -> int:
            value = config[name]
            if not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}, and should be a number")
            return value

        heads, hidden = size("num_attention_heads"), size("hidden_size")
        return cls(
            layers=size("num_hidden_layers"),
            hidden=hidden,
            intermediate=size("intermediate_size"),
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            vocabulary=size("vocab_size"),
            tied=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", False),
            mlp_bias=config.get("mlp_bias", False),
        )

    @property
    def parameters(self) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (q + 2 * kv) + q * self.hidden
        attention += (q + 2 * kv + self.hidden) if self.attention_bias else 0
        mlp = 3 * self.hidden * self.intermediate
        mlp += (2 * self.intermediate + self.hidden) if self.mlp_bias else 0
        norms = 2 * self.hidden
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp + norms) + embeddings + self.hidden

    def weight_bytes(self, dtype: str) -> int:
        return self.parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * DTYPE_BYTES[dtype]
