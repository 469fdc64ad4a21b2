"""The llama family: RMS norm, rotary embedding, grouped-query attention, a gated feed-forward.

Names of layers are those of the checkpoint. Shapes: T tokens of the step, H hidden, D head size.
"""

import torch
from torch import Tensor

from quire_engine.layers.linear import Linear
from quire_engine.layers.rotary import rotary_table
from quire_engine.models.weights import Weights
from quire_engine.ops import Ops
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.kv_cache import KVCache
from quire_engine.spec import ModelSpec

__all__ = ["Llama"]


class Llama:
    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, device: torch.device) -> None:
        shape = spec.shape
        self._ops = ops
        self._epsilon = spec.norm_epsilon
        self._embedding = weights.take("model.embed_tokens.weight", (shape.vocabulary, shape.hidden))
        table = rotary_table(shape.head_dim, spec.trained_len, spec.rope_theta, device)
        self._blocks = [_Block(spec, weights, ops, f"model.layers.{i}", table) for i in range(shape.layers)]
        self._norm = weights.take("model.norm.weight", (shape.hidden,))
        if shape.tied:
            weights.ignore("lm_head.weight")  # some checkpoints keep a copy
            self._head = self._embedding
        else:
            self._head = weights.take("lm_head.weight", (shape.vocabulary, shape.hidden))

    def forward(self, batch: ForwardBatch, cache: KVCache) -> Tensor:
        x = self._embedding[batch.tokens]  # [T, H]
        for index, block in enumerate(self._blocks):
            x = block(x, batch, cache.layer(index))
        return self._ops.rms_norm(x, self._norm, self._epsilon)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._ops.linear(hidden, self._head, None).float()


class _Block:
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, name: str, table: Tensor) -> None:
        shape = spec.shape
        hidden, wide = shape.hidden, shape.intermediate
        self._q, self._kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._head_dim = shape.head_dim
        self._ops = ops
        self._epsilon = spec.norm_epsilon
        self._table = table
        self._scale = shape.head_dim**-0.5

        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        self._norm_in = weights.take(f"{name}.input_layernorm.weight", (hidden,))
        self._norm_mid = weights.take(f"{name}.post_attention_layernorm.weight", (hidden,))
        projections = [f"{attention}.{p}_proj" for p in "qkv"]
        bias = shape.attention_bias
        self._qkv = Linear(ops, weights, *projections, out=(self._q, self._kv, self._kv), into=hidden, bias=bias)
        self._out = Linear(ops, weights, f"{attention}.o_proj", out=(hidden,), into=self._q, bias=bias)
        bias = shape.mlp_bias
        self._gate_up = Linear(
            ops, weights, f"{mlp}.gate_proj", f"{mlp}.up_proj", out=(wide, wide), into=hidden, bias=bias
        )
        self._down = Linear(ops, weights, f"{mlp}.down_proj", out=(hidden,), into=wide, bias=bias)

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self._attend(self._ops.rms_norm(x, self._norm_in, self._epsilon), batch, cache)
        h = self._ops.rms_norm(x, self._norm_mid, self._epsilon)
        return x + self._down(self._ops.silu_mul(self._gate_up(h)))

    def _attend(self, x: Tensor, batch: ForwardBatch, cache: tuple[Tensor, Tensor]) -> Tensor:
        parts = torch.split(self._qkv(x), [self._q, self._kv, self._kv], dim=-1)
        q, k, v = (part.view(len(x), -1, self._head_dim) for part in parts)  # [T, heads or kv_heads, D]
        q = self._ops.rotate(q, self._table, batch.positions)
        k = self._ops.rotate(k, self._table, batch.positions)
        self._ops.write_kv(k, v, cache, batch.places)
        attended = self._ops.attention(q, cache, batch, self._scale)
        return self._out(attended.flatten(1))
