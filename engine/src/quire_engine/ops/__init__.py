"""The table of kernels: everything a model computes that is more than a view.

`Ops` is built once (build.py), handed to the model and from it to the layers; nothing looks it up. A new
kernel is a field here, an implementation in reference.py, which is the oracle, and a parity case in
tests/quire_engine/test_ops.py for each other implementation.

Shapes: T tokens of a step, D head size. Activations are of the model's format; weights of norms are float32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.ops.packed import Kind
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.ranks import ALONE, Ranks
from quire_engine.spec import Routing

__all__ = [
    "IN_PROMPT",
    "Activation",
    "AttentionForm",
    "Draws",
    "Forward",
    "LayerCache",
    "Linear",
    "Matrices",
    "Matrix",
    "Mix",
    "Ops",
    "Walker",
]

Matrix = Any  # a weight [out, in] in the layout of the table that packed it
Matrices = Any  # one weight for each expert, by their numbers, as the table packed them
LayerCache = tuple[
    Tensor, Tensor
]  # keys, values: each [blocks, kv_heads, block_size, D], of the model's format or in 8 bits; kernels may order a block their way.
# Values of a latent form: D is `latent` or, where kernels find them in the keys, 0

IN_PROMPT = 1 << 30  # a token's bit in `seen`; below it, how often the token is in the output

Forward = Callable[[ForwardBatch, Any], Tensor]  # of a model: a step and its cache -> [T, hidden]


class Activation(StrEnum):
    SILU = "silu"
    GELU = "gelu"  # by the error function
    GELU_TANH = "gelu_tanh"  # by its usual approximation
    GPT_OSS = "gpt_oss"  # x * sigmoid(1.702 * x) of the smaller of x and 7; of a gate: times 1 + up, which is kept within 7 of 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionForm:
    """What one attention layer does with its heads. Query head h reads key head h // (heads // kv_heads)."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    causal: bool = True
    window: int | None = None  # a token sees itself and the window - 1 before it
    softcap: float | None = None  # scores become softcap * tanh(score / softcap)
    slopes: Tensor | None = None  # [heads] float32: a score is less by that for each token between the two (ALiBi)
    latent: int | None = None  # a value is the last so many numbers of its key, and is not given beside it (MLA)
    sinks: Tensor | None = None  # [heads] float32: one more score, which takes its share of the weights for no value
    rotary: Tensor | None = None  # [positions, rotary_dim] float32, cosines then sines; rotary_dim <= D, the rest stays
    q_norm: Tensor | None = None  # [D] float32: RMS norm of each query head before it is rotated
    k_norm: Tensor | None = None
    epsilon: float = 1e-6  # of those norms

    @property
    def value_dim(self) -> int:
        return self.latent or self.head_dim

    @property
    def given_heads(self) -> int:
        """Of queries, keys, and values if they are given."""
        return self.heads + (1 if self.latent else 2) * self.kv_heads


class Walker(Protocol):
    """Grammars on their way, on the host: a matcher for each slot, or none. What is begun may still be under way until `end`;
    the other calls wait for it."""

    masks: NDArray[np.int32]  # [slots, words]: a bit for each token that may come next, the lowest first
    seconds: NDArray[np.float64]  # [slots] of the processor that it took; -1: it does not go on, and its mask is empty

    def put(self, slot: int, matcher: Any) -> None: ...

    def begin(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Of each of these slots: show it the token, -1 being none, and fill its mask."""
        ...

    def end(self) -> bool:
        """Wait. Was there one that does not go on, or took long, when one was begun last?"""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """The rows of a step's logits that are drawn from, and how; on the host, [R] each, contiguous."""

    rows: NDArray[np.int64]
    temperature: NDArray[np.float32]
    log_min_p: NDArray[np.float32]  # -inf: nothing is too unlikely
    top_k: NDArray[np.int64]  # 0: all
    top_p: NDArray[np.float64]
    words: NDArray[np.int32]  # what seed and position give to the noise (sampling/noise.py)


class Route(Protocol):
    def __call__(self, likings: Tensor, routing: Routing, preference: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """likings [T, experts] float32 -> choices [T, chosen] int64, in ascending order, and their shares [T, chosen] float32.
        What is preferred, [experts] float32, is more likely to be chosen by so much; its share does not grow"""
        ...


class Mix(Protocol):
    def __call__(
        self,
        x: Tensor,
        routed: tuple[Tensor, Tensor],
        gate_up: Matrices,
        down: Matrices,
        activation: Activation,
        biases: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """x [T, hidden], its route, gate|up [2 * inner, hidden] and down [hidden, inner] of each expert, and their biases,
        [experts, 2 * inner] and [experts, hidden] float32 -> [T, hidden]: what the chosen experts make of a row, times their
        shares, added up in float32 from the first to the last"""
        ...


class Linear(Protocol):
    def __call__(self, x: Tensor, weight: Matrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
        """x [T, in] -> [T, out]; float32 if `wide`, as logits are. The bias is float32."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ops:
    pack: Callable[[Any], Matrix]
    """weight [out, in] -> the same, laid out for `linear` and `embed`; may reuse its memory. A `Packed` of a kind that is
    kept is laid out for `linear` alone"""

    linear: Linear

    embed: Callable[[Tensor, Matrix], Tensor]
    """ids [T], table [vocabulary, hidden] as packed -> rows [T, hidden]"""

    pack_experts: Callable[[Iterator[Tensor], int], Matrices]
    """weights [out, in], one after the other, of so many experts -> the same, laid out for `mix`"""

    route: Route

    mix: Mix

    per_head: Callable[[Tensor, Matrices], Tensor]
    """x [T, heads, in], a weight [out, in] of each head by `pack_experts` -> [T, heads, out]"""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    """x [T, hidden], weight [hidden], epsilon -> [T, hidden]; computed in float32, rounded once"""

    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
    """x, residual, weight, epsilon -> (rms_norm(x + residual), x + residual); may overwrite x and residual"""

    layer_norm: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """x [T, hidden], weight, bias [hidden], epsilon -> [T, hidden]"""

    activate: Callable[[Tensor, Activation], Tensor]
    """x [T, n] -> activation(x)"""

    gate: Callable[[Tensor, Activation], Tensor]
    """gate|up [T, 2 * n] -> activation(gate) * up [T, n]; of GPT_OSS times what it makes of up"""

    store_kv: Callable[[Tensor, AttentionForm, LayerCache, ForwardBatch], Tensor]
    """q|k|v, of a latent form q|k, [T, given_heads * D] -> q [T, heads, D]; q and k are normed and rotated as the form says,
    k and v stored at the batch's places"""

    attention: Callable[[Tensor, AttentionForm, LayerCache, ForwardBatch], Tensor]
    """q [T, heads, D] -> [T, heads, D of values]: each row over the stored tokens of its chunk's sequence that it may see"""

    best: Callable[[Tensor], Tensor]
    """logits [S, vocabulary] float32 -> ids [S] int64, the first of the largest of each row; -1: a NaN or +inf is
    among them; -2: all are -inf"""

    rule_out: Callable[[Tensor, Tensor, Tensor], None]
    """logits [S, vocabulary] float32, rows [R] int64, allowed [R, words] int32 with a bit for each token, the lowest
    first: in place, the rows become -inf where there is no bit"""

    walker: Callable[[int, int], Walker]
    """So many slots, words of a mask -> the grammars of the slots, none so far"""

    penalise: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
    """logits [S, vocabulary] float32, some of its rows [R] int64, seen [slots, vocabulary] int32, the slots of these rows
    [R] int64, their penalties [R, 3] float32: repetition, frequency, presence. Overwrites the rows."""

    draw: Callable[[Tensor, Draws], Tensor]
    """logits [S, vocabulary] float32 -> a token [R] int64 of each row that is drawn from; whatever where one is not made of
    numbers"""

    score: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
    """logits [R, vocabulary] float32, a token of each row, n -> log probabilities [R, 1 + n] float32 of the token and of
    the n likeliest, and [R, 2 + n] int64: the token, its rank from 1 on, and the ids of the likeliest"""

    recorded: Callable[[Forward, int], Forward]
    """A model's forward pass -> the same, to the bit, which may be quicker from its second time on where a batch has at
    most so many rows. It is for one cache, and what it returns holds until it is called again."""

    keeps: frozenset[Kind] = frozenset()
    """No kernel: the kinds of weights in few bits that `pack` and `linear` take; of other kinds they get the plain matrix"""

    caches_fp8: bool = False
    """No kernel: the KV cache may be float8_e4m3fn. What is beyond 448 becomes 448 there"""

    finds_values_in_keys: bool = True
    """No kernel: of a latent form nothing but keys need be kept"""

    invariance: Invariance | None = None
    """No kernel: where steps say whether rows must get the same bits in any batch; None: these kernels cannot"""

    ranks: Ranks = field(default=ALONE)
    """No kernel: who computes the model together, which part this one has, and how they put theirs together"""
