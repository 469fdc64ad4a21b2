"""Model families. One visible table; docs/adding-a-model.md says how a family is added."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from quire_engine.models.llama import Llama
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import ModelSpec

__all__ = ["ARCHITECTURES", "CausalLM"]


class CausalLM(Protocol):
    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        """Hidden states [T, hidden] of the batch's tokens; stores their keys and values."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, vocabulary] float32."""
        ...


ARCHITECTURES: dict[str, Callable[[ModelSpec, Weights, Ops, torch.device], CausalLM]] = {
    "LlamaForCausalLM": Llama,
}
