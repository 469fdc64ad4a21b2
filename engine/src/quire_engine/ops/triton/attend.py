"""Paged attention: two kernels over one inner loop.

The rows that share a key head, a token's group of query heads, are packed into one tile, token by token. Where heads are so
wide that their sums would not stay in registers, a program takes PART of the group.

Of a latent form the key is [beside | latent]: a program reads it once, multiplies both parts with those of the query, and
takes the latent for the value.

*One token* (decode). Grid: chunk, key head and part of its group, split. A context is divided every SPLIT tokens, whatever
the batch, so that many cores work for one sequence; where there is more than one split, each leaves its sums, and `_merge`
adds them in their order (grid: chunk, query head).

*More tokens* (prefill). Grid: tile, key head and part of its group. Tiles of all chunks are numbered through: chunk i begins
at tile query_start[i] // TOKENS + i, which leaves some numbers to nobody and needs no count on the host; the last tiles,
which see most, begin first.

A request that wants the same bits in any batch has single tokens done as the others are: which it is of a piece of a prompt
depends on the batch.

Otherwise both are launched for every chunk and return at once where the other one works. The longest context of a single token
is known to the host, so that nothing has to be read back from the device.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import AttentionForm, LayerCache
from quire_engine.ops.triton.rounding import from_e4m3
from quire_engine.ops.triton.rows import tanh
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.invariance import Invariance

__all__ = ["attention_by"]

SPLIT = 512  # tokens of a context; a result depends on it
LEAST = 16  # rows and columns that a tensor core takes
PREFILL_ROWS = 64
WIDE, WIDE_ROWS, WIDE_PREFILL_ROWS = 256, 16, 32  # of values wider than so much, fewer rows
AT_ONCE = tl.constexpr(16)  # splits that are merged
LOG2_E = tl.constexpr(1.4426950408889634)


def attention_by(invariance: Invariance) -> Callable[[Tensor, AttentionForm, LayerCache, ForwardBatch], Tensor]:
    def attention(query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
        return _attention(query, form, cache, batch, alike=invariance.asked)

    return attention


def _attention(query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch, *, alike: bool) -> Tensor:
    """`alike`: of a single token as of others."""
    query = query.contiguous()
    keys, values = cache
    fp8 = keys.dtype is torch.float8_e4m3fn
    if fp8:  # not every architecture has conversions for it
        keys, values = keys.view(torch.int8), values.view(torch.int8)
    tokens, heads, dim = len(query), form.heads, form.value_dim
    beside = form.head_dim - dim
    if form.latent:
        values = keys[..., beside:]
    chunks = len(batch.block_tables)
    group = form.heads // form.kv_heads
    out = query.new_empty(tokens, heads, dim)
    page = keys.shape[2]
    block = max(LEAST, triton.next_power_of_2(dim))
    most = 0 if alike else triton.cdiv(batch.longest_single, SPLIT)
    places = (batch.query_start, batch.context_len, batch.block_tables, batch.block_tables.stride(0))
    shape = {
        "HEADS": heads, "KV_HEADS": form.kv_heads, "GROUP": group, "DIM": dim, "BESIDE": beside, "BLOCK": block,
        "BLOCK_BESIDE": max(LEAST, triton.next_power_of_2(beside)), "PAGE": page,
    }  # fmt: skip
    flags = {
        "CAUSAL": form.causal, "WINDOW": form.window or 0, "CAPPED": form.softcap is not None,
        "SLOPED": form.slopes is not None, "SINKS": form.sinks is not None, "FP8": fp8,
        "PRECISION": "ieee" if query.dtype is torch.float32 else "tf32",
    }  # fmt: skip
    numbers = (form.scale, form.softcap or 1.0)
    nothing = query  # an address for what the form has not
    slopes, sinks = (nothing if each is None else each for each in (form.slopes, form.sinks))
    wide = query.dtype is torch.float32
    columns = 64 // (1 + wide) // (1 + (block > 128 or beside > 0))  # so that sums and scores stay in registers

    if most > 0:
        sums = query.new_empty((chunks, most, heads, dim) if most > 1 else 1, dtype=torch.float32)
        tops = query.new_empty((2, chunks, most, heads) if most > 1 else 1, dtype=torch.float32)
        part = min(group, WIDE_ROWS) if block > WIDE else group
        _decode[(chunks, form.kv_heads * triton.cdiv(group, part), most)](
            query, keys, values, out, sums, tops, *places, slopes, sinks, *numbers, chunks, most,
            **shape, **flags, SPLIT=SPLIT, PART=part, ROWS=max(LEAST, triton.next_power_of_2(part)),
            COLUMNS=columns, num_warps=4, num_stages=2,
        )  # fmt: skip
        if most > 1:
            _merge[(chunks, heads)](
                sums, tops, out, batch.query_start, batch.context_len, sinks, chunks, most,
                HEADS=heads, DIM=dim, BLOCK=block, SPLIT=SPLIT, WINDOW=form.window or 0, SINKS=flags["SINKS"],
                num_warps=2 if block <= WIDE else 8,
            )  # fmt: skip
    if tokens > chunks or alike:
        rows = (PREFILL_ROWS if block <= WIDE else WIDE_PREFILL_ROWS) // (1 + wide)
        part = min(group, rows) if block > WIDE else group
        at_once = max(1, rows // triton.next_power_of_2(part))
        _prefill[(tokens // at_once + chunks, form.kv_heads * triton.cdiv(group, part))](
            query, keys, values, out, *places, slopes, sinks, *numbers, chunks,
            **shape, **flags, SINGLES=alike, TOKENS=at_once, PART=part,
            ROWS=max(LEAST, triton.next_power_of_2(at_once * part)),
            COLUMNS=columns, num_warps=4 if block < 64 else 8, num_stages=2,
        )  # fmt: skip
    return out


@triton.jit
def _from_cache(code, dtype: tl.constexpr):
    return tl.where((code & 127) == 127, float("nan"), from_e4m3(code, dtype)).to(dtype)


@triton.jit
def _attend(
    query, query_beside, keys_at, values_at, table, kv_head, positions, slopes, begin, end, scale, softcap,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BESIDE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_BESIDE: tl.constexpr,
    PAGE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr, FP8: tl.constexpr,
    PRECISION: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Rows at these positions over the tokens [begin, end): sums of values, and the largest score and sum of weights of
    each row, by powers of two."""
    d, e = tl.arange(0, BLOCK), tl.arange(0, BLOCK_BESIDE)
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(begin, end, COLUMNS):
        token = start + tl.arange(0, COLUMNS)
        there = token < end
        page = tl.load(table + token // PAGE, mask=there, other=0).to(tl.int64)
        at = ((page * KV_HEADS + kv_head) * PAGE + token % PAGE) * (DIM + BESIDE)
        full = there[:, None] & (d < DIM)[None, :]
        keys = tl.load((values_at if BESIDE else keys_at) + at[:, None] + d[None, :], mask=full, other=0)
        if FP8:
            keys = _from_cache(keys, query.dtype)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION)
        if BESIDE:
            beside = tl.load(keys_at + at[:, None] + e[None, :], mask=there[:, None] & (e < BESIDE)[None, :], other=0)
            if FP8:
                beside = _from_cache(beside, query.dtype)
            scores = tl.dot(query_beside, tl.trans(beside), scores, input_precision=PRECISION)
        scores *= scale
        if CAPPED:
            scores = softcap * tanh(scores / softcap)
        if SLOPED:
            scores -= slopes[:, None] * tl.abs(positions[:, None] - token[None, :])
        seen = there[None, :] & (positions >= 0)[:, None]
        if CAUSAL:
            seen = seen & (token[None, :] <= positions[:, None])
        if WINDOW > 0:
            seen = seen & (token[None, :] > positions[:, None] - WINDOW)
            if not CAUSAL:
                seen = seen & (token[None, :] < positions[:, None] + WINDOW)
        scores = tl.where(seen, scores * LOG2_E, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # of a row that has seen nothing yet
        weights = tl.exp2(scores - base[:, None])
        before = tl.exp2(top - base)
        total = total * before + tl.sum(weights, 1)
        values = keys
        if not BESIDE:
            values = tl.load(values_at + at[:, None] + d[None, :], mask=full, other=0)
            if FP8:
                values = _from_cache(values, query.dtype)
        sums = sums * before[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        top = higher
    return sums, top, total


@triton.jit(do_not_specialize=["chunks", "most", "table_stride"])  # they change with every step
def _decode(
    query_at, keys_at, values_at, out_at, sums_at, tops_at, query_start, context_len, tables, table_stride,
    slopes_at, sinks_at, scale, softcap, chunks, most,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BESIDE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_BESIDE: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    SINKS: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    SPLIT: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (GROUP + PART - 1) // PART
    chunk, kv_head, split = tl.program_id(0), tl.program_id(1) // PARTS, tl.program_id(2)
    before = tl.program_id(1) % PARTS * PART  # heads of the group, in other parts
    token = tl.load(query_start + chunk).to(tl.int64)
    context = tl.load(context_len + chunk)
    if tl.load(query_start + chunk + 1) - token != 1:
        return
    begin, end = split * SPLIT, tl.minimum(split * SPLIT + SPLIT, context)
    if begin >= context:
        return
    if WINDOW > 0:
        begin = tl.maximum(begin, context - WINDOW)
        if begin >= end:
            return
    row, d, e = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, BLOCK_BESIDE)
    there = (row < PART) & (before + row < GROUP)
    head = kv_head * GROUP + before + row
    full = there[:, None] & (d < DIM)[None, :]
    at = (token * HEADS + head[:, None]) * DIM + d[None, :]
    if BESIDE == 0:  # as it is stored, which saves registers
        query = tl.load(query_at + at, mask=full, other=0.0)
        query_beside = query
    else:
        query_row = query_at + (token * HEADS + head[:, None]) * (DIM + BESIDE)
        query = tl.load(query_row + BESIDE + d[None, :], mask=full, other=0.0)
        query_beside = tl.load(query_row + e[None, :], mask=there[:, None] & (e < BESIDE)[None, :], other=0.0)
    positions = tl.where(there, context - 1, -1)
    slopes = tl.zeros([ROWS], tl.float32)
    if SLOPED:
        slopes = tl.load(slopes_at + head, mask=there, other=0.0)
    sums, top, total = _attend(
        query, query_beside, keys_at, values_at, tables + chunk.to(tl.int64) * table_stride, kv_head, positions, slopes, begin, end,
        scale, softcap, KV_HEADS, DIM, BESIDE, BLOCK, BLOCK_BESIDE, PAGE, CAUSAL, WINDOW, CAPPED, SLOPED, FP8, PRECISION, ROWS, COLUMNS,
    )  # fmt: skip
    if context <= SPLIT:
        if SINKS:
            total += tl.exp2(tl.load(sinks_at + head, mask=there, other=0.0) * LOG2_E - top)
        tl.store(out_at + at, (sums / total[:, None]).to(out_at.dtype.element_ty), mask=full)
    else:
        place = (chunk.to(tl.int64) * most + split) * HEADS + head
        tl.store(sums_at + place[:, None] * DIM + d[None, :], sums, mask=full)
        tl.store(tops_at + place, top, mask=there)
        tl.store(tops_at + chunks.to(tl.int64) * most * HEADS + place, total, mask=there)


@triton.jit(do_not_specialize=["chunks", "most"])
def _merge(
    sums_at, tops_at, out_at, query_start, context_len, sinks_at, chunks, most,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr, WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    chunk, head = tl.program_id(0), tl.program_id(1)
    token = tl.load(query_start + chunk).to(tl.int64)
    context = tl.load(context_len + chunk)
    if tl.load(query_start + chunk + 1) - token != 1 or context <= SPLIT:
        return
    d = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    top = float("-inf")
    total = 0.0
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(0, context - WINDOW) // SPLIT
    count = tl.cdiv(context, SPLIT)
    for start in range(begin, count, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        there = split < count
        place = (chunk.to(tl.int64) * most + split) * HEADS + head
        theirs = tl.load(tops_at + place, mask=there, other=float("-inf"))
        higher = tl.maximum(top, tl.max(theirs, 0))
        before, now = tl.exp2(top - higher), tl.exp2(theirs - higher)
        full = there[:, None] & (d < DIM)[None, :]
        parts = tl.load(sums_at + place[:, None] * DIM + d[None, :], mask=full, other=0.0)
        totals = tl.load(tops_at + chunks.to(tl.int64) * most * HEADS + place, mask=there, other=0.0)
        sums = sums * before + tl.sum(parts * now[:, None], 0)
        total = total * before + tl.sum(totals * now, 0)
        top = higher
    if SINKS:
        total += tl.exp2(tl.load(sinks_at + head) * LOG2_E - top)
    tl.store(out_at + (token * HEADS + head) * DIM + d, (sums / total).to(out_at.dtype.element_ty), mask=d < DIM)


@triton.jit(do_not_specialize=["chunks", "table_stride"])
def _prefill(
    query_at, keys_at, values_at, out_at, query_start, context_len, tables, table_stride,
    slopes_at, sinks_at, scale, softcap, chunks,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BESIDE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_BESIDE: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    SINKS: tl.constexpr, FP8: tl.constexpr, PRECISION: tl.constexpr,
    SINGLES: tl.constexpr, TOKENS: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    PARTS: tl.constexpr = (GROUP + PART - 1) // PART
    tile, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1) // PARTS
    before = tl.program_id(1) % PARTS * PART
    chunk = 0
    beyond = chunks
    while beyond - chunk > 1:  # the last chunk that begins at this tile or before
        middle = (chunk + beyond) // 2
        if tl.load(query_start + middle) // TOKENS + middle <= tile:
            chunk = middle
        else:
            beyond = middle
    start = tl.load(query_start + chunk)
    count = tl.load(query_start + chunk + 1) - start
    context = tl.load(context_len + chunk)
    first = (tile - (start // TOKENS + chunk)) * TOKENS
    if (count == 1 and not SINGLES) or first >= count:
        return
    row, d, e = tl.arange(0, ROWS), tl.arange(0, BLOCK), tl.arange(0, BLOCK_BESIDE)
    local = first + row // PART
    there = (local < count) & (row < TOKENS * PART) & (before + row % PART < GROUP)
    positions = tl.where(there, context - count + local, -1)
    head = kv_head * GROUP + before + row % PART
    number = ((start + local).to(tl.int64) * HEADS + head)[:, None]
    at = number * DIM + d[None, :]
    full = there[:, None] & (d < DIM)[None, :]
    query_row = query_at + number * (DIM + BESIDE)
    query = tl.load(query_row + BESIDE + d[None, :], mask=full, other=0.0)
    query_beside = query
    if BESIDE:
        query_beside = tl.load(query_row + e[None, :], mask=there[:, None] & (e < BESIDE)[None, :], other=0.0)
    lowest = context - count + first
    highest = context - count + tl.minimum(first + TOKENS, count)  # one too many
    begin = 0
    end = context
    if CAUSAL:
        end = highest
    if WINDOW > 0:
        begin = tl.maximum(0, lowest - WINDOW + 1) // COLUMNS * COLUMNS  # where it would begin for any other tile, too
        if not CAUSAL:
            end = tl.minimum(context, highest + WINDOW - 1)
    slopes = tl.zeros([ROWS], tl.float32)
    if SLOPED:
        slopes = tl.load(slopes_at + head, mask=there, other=0.0)
    sums, top, total = _attend(
        query, query_beside, keys_at, values_at, tables + chunk.to(tl.int64) * table_stride, kv_head, positions, slopes, begin, end,
        scale, softcap, KV_HEADS, DIM, BESIDE, BLOCK, BLOCK_BESIDE, PAGE, CAUSAL, WINDOW, CAPPED, SLOPED, FP8, PRECISION, ROWS, COLUMNS,
    )  # fmt: skip
    if SINKS:
        total += tl.exp2(tl.load(sinks_at + head, mask=there, other=0.0) * LOG2_E - top)
    tl.store(out_at + at, (sums / total[:, None]).to(out_at.dtype.element_ty), mask=full)
