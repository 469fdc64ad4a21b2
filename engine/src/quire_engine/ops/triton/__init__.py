"""The kernels for GPUs, in Triton: `triton_ops`, of the same table as the reference.

Products of plain matrices stay with torch, whose library is at the hardware's limit, but for those of experts, who find
their rows on the device; here are those with weights in few bits, and what lies between products, each fused to one
reading of its rows. Nothing here waits for the device: grids are bounded by shapes, and which sequence a
program works for it looks up there.

A row of a norm is one program's, an expert's tile has as many rows in any batch, and attention divides a context by a
fixed number of tokens (attend.py). But torch's products choose by the number of rows, those with weights in few bits are made in
another way from 65 rows on (products.py), and a lone token's attention is added up otherwise than a prompt's. Where a request asks
for the same bits in any batch (`Ops.invariance`), all products are made in pieces of 64 rows, and all attention as a prompt's.
"""

from dataclasses import replace

from quire_engine.ops import Ops
from quire_engine.ops.packed import Kind
from quire_engine.ops.reference import reference_ops
from quire_engine.ops.triton.attend import attention_by
from quire_engine.ops.triton.best import best
from quire_engine.ops.triton.draw import draw, penalise, score
from quire_engine.ops.triton.experts import mix, route
from quire_engine.ops.triton.graphs import recorded_by
from quire_engine.ops.triton.products import linear_by, pack, per_head_by
from quire_engine.ops.triton.rows import activate, add_rms_norm, gate, layer_norm, rms_norm
from quire_engine.ops.triton.rule_out import rule_out
from quire_engine.ops.triton.store import store_kv
from quire_engine.runtime.invariance import Invariance

__all__ = ["triton_ops"]


def triton_ops() -> Ops:
    invariance = Invariance()
    return replace(
        reference_ops(),
        pack=pack,
        linear=linear_by(invariance),
        keeps=frozenset(Kind),
        caches_fp8=True,
        route=route,
        mix=mix,
        per_head=per_head_by(invariance),
        rms_norm=rms_norm,
        add_rms_norm=add_rms_norm,
        layer_norm=layer_norm,
        activate=activate,
        gate=gate,
        store_kv=store_kv,
        attention=attention_by(invariance),
        best=best,
        rule_out=rule_out,
        recorded=recorded_by(invariance),
        invariance=invariance,
        penalise=penalise,
        draw=draw,
        score=score,
    )
