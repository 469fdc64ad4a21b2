"""Texts to embeddings: one pass over each, nothing kept.

Prompts are packed into batches as they come, each in one chunk. Keys and values are needed within a layer only, so
that the cache is one layer deep and every layer overwrites it.
"""

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_engine.core.request import TokenParams
from quire_engine.core.step import Placement, StepPlan
from quire_engine.errors import RequestRejected
from quire_engine.models import Encoder
from quire_engine.ops import LayerCache
from quire_engine.runtime.batch import BatchBuilder, ForwardBatch
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import ModelSpec

__all__ = ["Embedder"]

UNUSED = TokenParams(max_tokens=1)  # nothing is sampled


class Embedder:
    def __init__(
        self,
        encoder: Encoder,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        block_size: int,
        max_tokens: int,
        longest: int | None = None,
        device: torch.device,
    ) -> None:
        """A prompt has so many tokens at the `longest`, if it is not the model that says so. `max_tokens` go through the model at once, more or less: a prompt takes whole blocks."""
        self._encoder = encoder
        self._pooling = spec.pooling
        self._hidden = spec.shape.hidden
        self._vocabulary = spec.shape.vocabulary
        self.longest = min(spec.trained_len, max_tokens, longest or max_tokens)  # tokens of one prompt
        self._block_size = block_size
        self._num_blocks = -(-max_tokens // block_size)
        self._device = device
        self._builder = BatchBuilder(self._num_blocks, self.longest, block_size, device)
        self._cache = _ScratchCache(spec, self._num_blocks, block_size, dtype, device)

    @torch.inference_mode()
    def embed(self, prompts: list[list[int]]) -> Tensor:
        """[N, hidden] float32, in the order of the prompts; RequestRejected if one of them cannot be embedded."""
        for number, prompt in enumerate(prompts):
            self.check(number, prompt)
        out = [torch.empty(0, self._hidden, device=self._device)]
        for group in self._groups(prompts):
            plan = self._plan(group)
            self._builder.take_in(plan)
            batch = self._builder.build(plan)
            out.append(self._pool(self._encoder.forward(batch, self._cache).float(), batch))
        return torch.cat(out)

    def check(self, number: int, prompt: list[int]) -> None:
        """RequestRejected if it cannot be embedded; `number` is its place among those of a request."""
        if not prompt:
            raise RequestRejected(f"input {number} is empty: there is nothing to embed", "input")
        if len(prompt) > self.longest:
            raise RequestRejected(f"input {number} has {len(prompt)} tokens, and at most {self.longest} fit", "input")
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < self._vocabulary:
                raise RequestRejected(
                    f"input {number} has the token id {token}, and ids go from 0 to {self._vocabulary - 1}", "input"
                )

    def _groups(self, prompts: list[list[int]]) -> Iterator[list[list[int]]]:
        """Neighbours that fit into the cache together."""
        group: list[list[int]] = []
        used = 0
        for prompt in prompts:
            need = self._blocks_of(prompt)
            if used + need > self._num_blocks:
                yield group
                group, used = [], 0
            group.append(prompt)
            used += need
        if group:
            yield group

    def _plan(self, prompts: list[list[int]]) -> StepPlan:
        plan, used = StepPlan(), 0
        for slot, prompt in enumerate(prompts):
            blocks = list(range(used, used + self._blocks_of(prompt)))
            used += len(blocks)
            plan.placements.append(
                Placement(slot=slot, tokens=prompt, num_prompt=len(prompt), blocks=blocks, params=UNUSED)
            )
            plan.slots.append(slot)
            plan.starts.append(0)
            plan.lengths.append(len(prompt))
            plan.samples.append(False)
        return plan

    def _blocks_of(self, prompt: list[int]) -> int:
        return -(-len(prompt) // self._block_size)

    def _pool(self, hidden: Tensor, batch: ForwardBatch) -> Tensor:
        """[T, hidden] -> [B, hidden]"""
        starts = batch.query_start.long()
        if self._pooling.kind == "mean":
            lengths = starts.diff()  # [B]
            owner = torch.arange(len(lengths), device=self._device).repeat_interleave(lengths)  # [T]
            sums = torch.zeros(len(lengths), self._hidden, device=self._device).index_add_(0, owner, hidden)
            pooled = sums / lengths[:, None]
        else:
            pooled = hidden[starts[:-1] if self._pooling.kind == "cls" else starts[1:] - 1]
        return F.normalize(pooled, dim=-1) if self._pooling.normalise else pooled


class _ScratchCache:
    """The same layer, whichever is asked for."""

    def __init__(
        self, spec: ModelSpec, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        one_layer = dataclasses.replace(spec.shape, layers=1)
        self._cache = KVCache(one_layer, num_blocks, 0, block_size, dtype, device)

    def layer(self, index: int) -> LayerCache:
        return self._cache.layer(0)
