"""A model's logits of one prompt, without an engine around it."""

import torch

from quire_engine.core.request import TokenParams
from quire_engine.core.step import Placement, StepPlan
from quire_engine.models import CausalLM
from quire_engine.runtime.batch import BatchBuilder
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import ModelSpec

__all__ = ["logits_of"]

BLOCK = 16


def logits_of(spec: ModelSpec, model: CausalLM, prompt: list[int]) -> torch.Tensor:
    """[T, vocabulary]"""
    cpu, blocks = torch.device("cpu"), -(-len(prompt) // BLOCK)
    cache = KVCache(spec.shape, blocks, 0, BLOCK, torch.float32, cpu)
    builder = BatchBuilder(1, blocks * BLOCK, BLOCK, cpu)
    place = Placement(
        slot=0, tokens=prompt, num_prompt=len(prompt), blocks=[*range(blocks)], params=TokenParams(max_tokens=1)
    )
    plan = StepPlan(placements=[place], slots=[0], starts=[0], lengths=[len(prompt)])
    with torch.inference_mode():
        builder.take_in(plan)
        return model.logits(model.forward(builder.build(plan), cache))
