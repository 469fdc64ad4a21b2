"""A step's arrays, built from its plan.

The tokens of all chunks stand one after another, T in all; each chunk i owns the rows
query_start[i] .. query_start[i + 1] of every [T, ...] tensor:

    chunk          0               1     2
    rows     [ 0 1 2 3 4 ] [ 5 ] [ 6 7 8 9 ]         query_start = 0 5 6 10
    positions  0 1 2 3 4    17     32 33 34 35       context_len = 5 18 36

`context_len[i]` counts the tokens a chunk's last row may look at, itself included.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quire_engine.core.step import StepPlan

__all__ = ["ForwardBatch", "Sampling", "build_batch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """The S rows that sample, and how."""

    rows: Tensor  # [S] which of the T rows
    slots: Tensor  # [S] the sequence's slot
    positions: Tensor  # [S] position of the token that is chosen
    temperature: Tensor  # [S] float32; 0 is greedy
    top_k: Tensor  # [S]; 0 is all
    top_p: Tensor  # [S] float32
    seeds: Tensor  # [S]
    all_greedy: bool
    any_top: bool  # top_k or top_p is asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardBatch:
    tokens: Tensor  # [T] ids; what `follow_rows` names is not filled in yet
    positions: Tensor  # [T]
    places: Tensor  # [T] where each token's key and value go
    query_start: tuple[int, ...]  # [B + 1]
    context_len: tuple[int, ...]  # [B]
    block_tables: Tensor  # [B, most blocks of a chunk], padded with 0
    follow_rows: Tensor  # [F] rows whose id is the last sampled one ...
    follow_slots: Tensor  # [F] ... of these slots
    sampling: Sampling


def build_batch(plan: StepPlan, block_size: int, device: torch.device) -> ForwardBatch:
    chunks = plan.chunks
    lengths = [chunk.length for chunk in chunks]
    query_start = np.concatenate(([0], np.cumsum(lengths)))
    tokens = np.concatenate(
        [np.fromiter((*c.tokens, 0) if c.follows else c.tokens, np.int64, c.length) for c in chunks]
    )
    positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])

    tables = np.zeros((len(chunks), max(len(chunk.blocks) for chunk in chunks)), np.int64)
    for row, chunk in enumerate(chunks):
        tables[row, : len(chunk.blocks)] = chunk.blocks
    owner = np.repeat(np.arange(len(chunks)), lengths)  # [T] which chunk a row is of
    places = tables[owner, positions // block_size] * block_size + positions % block_size

    follows = [(query_start[i + 1] - 1, chunk.slot) for i, chunk in enumerate(chunks) if chunk.follows]
    samples = [(i, chunk) for i, chunk in enumerate(chunks) if chunk.samples]
    params = [chunk.params for _, chunk in samples]

    def upload(values: Any, kind: type[np.generic]) -> Tensor:
        """To the device, from pinned memory, so that the host need not wait for the step before."""
        tensor = torch.from_numpy(np.asarray(values, kind))
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    def integers(values: Any) -> Tensor:
        return upload(values, np.int64)

    def floats(values: Any) -> Tensor:
        return upload(values, np.float32)

    return ForwardBatch(
        tokens=integers(tokens),
        positions=integers(positions),
        places=integers(places),
        query_start=tuple(query_start.tolist()),
        context_len=tuple(chunk.end for chunk in chunks),
        block_tables=integers(tables),
        follow_rows=integers([row for row, _ in follows]),
        follow_slots=integers([slot for _, slot in follows]),
        sampling=Sampling(
            rows=integers([query_start[i + 1] - 1 for i, _ in samples]),
            slots=integers([chunk.slot for _, chunk in samples]),
            positions=integers([chunk.end for _, chunk in samples]),
            temperature=floats([p.temperature for p in params]),
            top_k=integers([p.top_k for p in params]),
            top_p=floats([p.top_p for p in params]),
            seeds=integers([p.seed for p in params]),
            all_greedy=all(p.temperature == 0 for p in params),
            any_top=any(p.top_k > 0 or p.top_p < 1 for p in params),
        ),
    )
