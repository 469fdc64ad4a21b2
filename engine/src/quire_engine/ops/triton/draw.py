"""The sampler: penalties, a token at random, log probabilities. No row is ever sorted.

*Penalties*. Grid: row, columns; each number by itself.

*A draw*. Grid: a program a row. Of all tokens that are left, temperature, min-p and noise decide on one: the candidate.
What top-k and top-p keep is the beginning of one order, by value, among equals by id, so that a second pass tells whether
it is kept: how many stand before it, and what probability they have together. If it is not, neither is any behind it, and
the next candidate is sought before it. On average that takes 1 + ln(1 / share of what is kept) rounds.

Only top-p among the best k has to know the k-th best first. Of the largest of each CHUNK tokens the k-th is a bound that no
token of the best k is below: those above it are listed, nearly always a few more than k, and all else is done among them.

*Scores*. Grid: a program a row. Each of the likeliest tokens is found by a pass of its own.

Probabilities are added as integers, noise is a hash of seed, position and token (sampling/noise.py): a token is that of the
reference. It may be another only where exp or log of the device, rounded otherwise, move a sum of probabilities past
top-p, or make equal or change over two candidates' sums of logit and noise, which are about 1e-7 apart then.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import Draws
from quire_engine.sampling.rows import upload

__all__ = ["draw", "penalise", "score"]

BLOCK = 4096  # tokens of a row at a time
CHUNK = 128  # tokens of which the largest is noted
LISTED = 4096  # tokens that a list has room for; where more are needed, all are gone through
NEVER = tl.constexpr(float("-inf"))
ONE = tl.constexpr(1 << 40)  # the best token's mass
SEEN_IN_PROMPT = tl.constexpr(1 << 30)


def penalise(logits: Tensor, rows: Tensor, seen: Tensor, slots: Tensor, strength: Tensor) -> None:
    width = logits.shape[1]
    _penalise[(len(rows), triton.cdiv(width, BLOCK))](
        logits, rows, seen, slots, strength, logits.stride(0), width, BLOCK=BLOCK, num_warps=16, enable_fp_fusion=False
    )


def draw(logits: Tensor, draws: Draws) -> Tensor:
    device, count, width = logits.device, len(draws.rows), logits.shape[1]
    tokens = torch.empty(count, dtype=torch.int64, device=device)
    chunks = triton.next_power_of_2(triton.cdiv(width, CHUNK))
    numbers = (draws.rows, draws.temperature, draws.log_min_p, draws.top_k, draws.top_p, draws.words)
    _draw[(count,)](
        logits, *(upload(each, device) for each in numbers),
        torch.empty(count, chunks, dtype=torch.float32, device=device),
        torch.empty(count, LISTED, dtype=torch.int32, device=device), tokens, logits.stride(0), width,
        BLOCK=BLOCK, CHUNK=CHUNK, CHUNKS=chunks, LISTED=LISTED, num_warps=16, enable_fp_fusion=False,
    )  # fmt: skip
    return tokens


def score(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor]:
    rows, width = logits.shape
    numbers = torch.empty(rows, 1 + top, dtype=torch.float32, device=logits.device)
    ids = torch.empty(rows, 2 + top, dtype=torch.int64, device=logits.device)
    _score[(rows,)](logits, tokens, numbers, ids, logits.stride(0), width, top, BLOCK=BLOCK, num_warps=16)
    return numbers, ids


@triton.jit
def _penalise(logits_at, rows_at, seen_at, slots_at, strength_at, stride, width, BLOCK: tl.constexpr):
    number = tl.program_id(0)
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = token < width
    at = logits_at + tl.load(rows_at + number) * stride + token
    logits = tl.load(at, mask=there, other=0.0)
    seen = tl.load(seen_at + tl.load(slots_at + number) * width + token, mask=there, other=0)
    strength = strength_at + number * 3
    repetition, frequency, presence = tl.load(strength), tl.load(strength + 1), tl.load(strength + 2)
    weakened = tl.where(logits > 0, tl.div_rn(logits, repetition), logits * repetition)
    logits = tl.where(seen > 0, weakened, logits)
    count = seen & (SEEN_IN_PROMPT - 1)
    logits = logits - (frequency * count.to(tl.float32) + presence * (count > 0).to(tl.float32))
    tl.store(at, logits, mask=there)


@triton.jit
def _mixed(x):
    """sampling/noise.py, of unsigned words"""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _noise(word, token):
    columns = _mixed(token.to(tl.uint32) + 0xC2B2AE35)
    bits = _mixed(columns ^ word.to(tl.uint32, bitcast=True))
    unit = ((bits >> 9).to(tl.float32) + 0.5) * (1.0 / (1 << 23))
    return -tl.log(-tl.log(unit))


@triton.jit
def _scaled(row_at, ids_at, listed, start, count, temperature, floor, BLOCK: tl.constexpr):
    """Tokens from one place on, of a list or of the row, and their logits; below the floor they are ruled out."""
    place = start + tl.arange(0, BLOCK)
    there = place < count
    token = place
    if listed:
        token = tl.load(ids_at + place, mask=there, other=0)
    value = tl.div_rn(tl.load(row_at + token, mask=there, other=NEVER), temperature)
    value = tl.where((value < float("inf")) & (value >= floor), value, NEVER)  # NaN is neither
    return token, value


@triton.jit
def _mass(value, best):
    return (tl.exp(value - best) * ONE).to(tl.int64)


@triton.jit
def _key(value):
    """Whole numbers in the order of values, all above 0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0, bits + 0x80000000, -1 - bits)


@triton.jit
def _kth(keys, k):
    """The k-th largest; 0 if there are not so many."""
    found, bit = tl.zeros([], tl.int64), tl.full([], 1 << 31, tl.int64)
    for _ in range(32):
        reach = tl.sum((keys >= found + bit).to(tl.int32), 0)
        found = tl.where(reach >= k, found + bit, found)
        bit = bit // 2
    return found


@triton.jit
def _draw(
    logits_at, rows_at, temperatures_at, log_min_p_at, top_k_at, top_p_at, words_at, maxima_at, ids_at, tokens_at,
    stride, width,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row_at = logits_at + tl.load(rows_at + number) * stride
    maxima_at += number * CHUNKS
    ids_at += number * LISTED
    temperature = tl.load(temperatures_at + number)
    top_k, top_p = tl.load(top_k_at + number).to(tl.int32), tl.load(top_p_at + number)
    word = tl.load(words_at + number)

    best = NEVER
    for start in range(0, width, BLOCK):
        _, value = _scaled(row_at, ids_at, False, start, width, temperature, NEVER, BLOCK)
        maxima = tl.max(tl.reshape(value, [BLOCK // CHUNK, CHUNK]), 1)
        chunk = start // CHUNK + tl.arange(0, BLOCK // CHUNK)
        tl.store(maxima_at + chunk, maxima, mask=chunk < CHUNKS)
        best = tl.maximum(best, tl.max(maxima, 0))
    tl.store(tokens_at + number, 0)
    if best == NEVER:
        return
    floor = best + tl.load(log_min_p_at + number)

    count, listed = width, False
    enough = tl.full([], float("inf"), tl.float64)
    if (top_p < 1) & (top_k > 0):
        tl.debug_barrier()
        chunk = tl.arange(0, CHUNKS)
        bound = _kth(_key(tl.load(maxima_at + chunk, mask=chunk * CHUNK < width, other=NEVER)), top_k)
        size = 0
        for start in range(0, width, BLOCK):
            token, value = _scaled(row_at, ids_at, False, start, width, temperature, floor, BLOCK)
            above = (_key(value) >= bound) & (token < width)
            place = size + tl.cumsum(above.to(tl.int32), 0) - 1
            tl.store(ids_at + place, token, mask=above & (place < LISTED))
            size += tl.sum(above.to(tl.int32), 0)
        listed = size <= LISTED
        count = tl.where(listed, size, width)
        tl.debug_barrier()
        last, bit = tl.zeros([], tl.int64), tl.full([], 1 << 31, tl.int64)  # the key of the k-th best, bit by bit
        for _step in range(32):
            reach = 0
            for start in range(0, count, BLOCK):
                _, value = _scaled(row_at, ids_at, listed, start, count, temperature, floor, BLOCK)
                there = start + tl.arange(0, BLOCK) < count
                reach += tl.sum(((_key(value) >= last + bit) & there).to(tl.int32), 0)
            last = tl.where(reach >= top_k, last + bit, last)
            bit = bit // 2
        before, more, equal = tl.zeros([], tl.int64), 0, tl.zeros([], tl.int64)
        for start in range(0, count, BLOCK):
            _, value = _scaled(row_at, ids_at, listed, start, count, temperature, floor, BLOCK)
            key, mass = _key(value), _mass(value, best)
            before += tl.sum(tl.where(key > last, mass, 0), 0)
            more += tl.sum((key > last).to(tl.int32), 0)
            equal = tl.maximum(equal, tl.max(tl.where(key == last, mass, 0), 0))
        enough = top_p * (before + (top_k - more) * equal).to(tl.float64)
    elif top_p < 1:
        total = tl.zeros([], tl.int64)
        for start in range(0, width, BLOCK):
            _, value = _scaled(row_at, ids_at, False, start, width, temperature, floor, BLOCK)
            total += tl.sum(_mass(value, best), 0)
        enough = top_p * total.to(tl.float64)

    bound, bound_token, seeking = NEVER, width, True
    while seeking:
        candidate, noisiest, its = width, NEVER, NEVER
        for start in range(0, count, BLOCK):
            token, value = _scaled(row_at, ids_at, listed, start, count, temperature, floor, BLOCK)
            left = (value > NEVER) & ((value > bound) | ((value == bound) & (token < bound_token)))
            noisy = tl.where(left, value + _noise(word, token), NEVER)
            top = tl.max(noisy, 0)
            if top > noisiest:
                candidate = tl.min(tl.where(noisy == top, token, width), 0)
                its = tl.max(tl.where(token == candidate, value, NEVER), 0)
                noisiest = top
        kept = (top_k == 0) & (top_p >= 1)
        if not kept:
            rank, before = 0, tl.zeros([], tl.int64)
            for start in range(0, count, BLOCK):
                token, value = _scaled(row_at, ids_at, listed, start, count, temperature, floor, BLOCK)
                ahead = (value > its) | ((value == its) & (token < candidate))
                rank += tl.sum(ahead.to(tl.int32), 0)
                before += tl.sum(tl.where(ahead, _mass(value, best), 0), 0)
            kept = (rank == 0) | (((top_k == 0) | (rank < top_k)) & (before.to(tl.float64) < enough))
        if kept:
            tl.store(tokens_at + number, candidate.to(tl.int64))
        bound, bound_token, seeking = its, candidate, not kept


@triton.jit
def _score(logits_at, tokens_at, numbers_at, ids_at, stride, width, top, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    row_at = logits_at + row * stride
    chosen = tl.load(tokens_at + row)
    best = NEVER
    for start in range(0, width, BLOCK):
        token = start + tl.arange(0, BLOCK)
        best = tl.maximum(best, tl.max(tl.load(row_at + token, mask=token < width, other=NEVER), 0))
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        token = start + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(row_at + token, mask=token < width, other=NEVER) - best)
    log_total = tl.log(tl.sum(total, 0))
    its = tl.load(row_at + tl.maximum(chosen, 0)) - best - log_total
    rank = 1
    for start in range(0, width, BLOCK):
        token = start + tl.arange(0, BLOCK)
        value = tl.load(row_at + token, mask=token < width, other=NEVER) - best - log_total
        rank += tl.sum((value > its).to(tl.int32), 0)
    numbers_at += row * (1 + top)
    ids_at += row * (2 + top)
    tl.store(numbers_at, its)
    tl.store(ids_at, chosen)
    tl.store(ids_at + 1, rank.to(tl.int64))
    bound, bound_token = float("inf"), -1
    for place in range(top):  # the best one behind the one before
        found, found_token = NEVER, width
        for start in range(0, width, BLOCK):
            token = start + tl.arange(0, BLOCK)
            value = tl.load(row_at + token, mask=token < width, other=NEVER) - best - log_total
            left = (token < width) & ((value < bound) | ((value == bound) & (token > bound_token)))
            largest = tl.max(tl.where(left, value, NEVER), 0)
            first = tl.min(tl.where(left & (value == largest), token, width), 0)
            if (first < width) & ((found_token == width) | (largest > found)):
                found, found_token = largest, first
        tl.store(numbers_at + 1 + place, found)
        tl.store(ids_at + 2 + place, found_token.to(tl.int64))
        bound, bound_token = found, found_token
