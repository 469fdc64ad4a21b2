"""Model families. Two visible tables; docs/adding-a-model.md says how a family is added.

A generator also embeds: what an `Embedder` wants is the first half of it.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from quire_engine.layers.attention import Cache
from quire_engine.models.bert import Bert
from quire_engine.models.bloom import Bloom
from quire_engine.models.deepseek import deepseek
from quire_engine.models.experts import gpt_oss, sparse_llama
from quire_engine.models.gemma import Gemma
from quire_engine.models.gpt2 import GPT2
from quire_engine.models.llama import Decoder, Llama
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.spec import ModelSpec

__all__ = ["ARCHITECTURES", "ENCODERS", "GENERATORS", "Build", "CausalLM", "Encoder"]


class Encoder(Protocol):
    def forward(self, batch: ForwardBatch, cache: Cache) -> Tensor:
        """Hidden states [T, hidden] of the batch's tokens; stores their keys and values."""
        ...


class CausalLM(Encoder, Protocol):
    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocabulary] float32."""
        ...


Model = TypeVar("Model", covariant=True)
Build = Callable[[ModelSpec, Weights, Ops, torch.device], Model]

GENERATORS: dict[str, Build[CausalLM]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "MixtralForCausalLM": sparse_llama,
    "Phi3ForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Llama,
    "Qwen3MoeForCausalLM": sparse_llama,
    "Gemma2ForCausalLM": Gemma,
    "Gemma3ForCausalLM": Gemma,
    "GPT2LMHeadModel": GPT2,
    "BloomForCausalLM": Bloom,
    "GptOssForCausalLM": gpt_oss,
    "DeepseekV2ForCausalLM": deepseek,
    "DeepseekV3ForCausalLM": deepseek,
}

ENCODERS: dict[str, Build[Encoder]] = {
    "BertModel": Bert,
    "BertForMaskedLM": Bert,
    "Qwen3Model": Decoder,
}

ARCHITECTURES: dict[str, Build[Encoder]] = {**GENERATORS, **ENCODERS}
