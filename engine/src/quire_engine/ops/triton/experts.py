"""A mixture of experts: who goes to whom, then two products in which each expert has its own rows.

*Routing*. Grid: a program a token, whose likings are whole in registers; it takes the best one, `chosen` times, of all or of the
best groups, which it finds in the same way.

*Sorting*. A pair is a token and one of its choices, numbered through. Each expert's pairs are listed in their order, padded
to whole tiles of ROWS, one expert after the other. Grid: a program an expert, once to count its pairs, and once more to find
where it begins and to list them. How many tiles there are shows on the device alone; that there are no more than
pairs // ROWS + min(experts, pairs) is known to the host, and tiles that nobody has are marked.

*Products*. Grid: columns of the result, tile. Rows are fetched by their pair, wherever they are, and stored by it. The
first product has gate and up side by side and goes through the activation, the second is what an expert makes of a row.
A tile has as many rows for one token as for thousands, so that a row is computed by the same instructions: while there
are few, reading the weights takes longer than multiplying a whole tile.

*Sum*. Grid: token, columns. The choices of a token are added in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_engine.ops import Activation
from quire_engine.ops.triton.rows import KINDS, activated, beside
from quire_engine.spec import Routing

__all__ = ["mix", "route"]

ROWS = 64  # of a tile; what a wide tensor core takes
LOWEST = tl.constexpr(-1e38)  # what is no number ranks below all that is
AT_ONCE = 1024  # choices, and columns of a sum


def route(likings: Tensor, routing: Routing, preference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    likings = likings.contiguous()
    tokens, experts = likings.shape
    choices = torch.empty(tokens, routing.chosen, dtype=torch.int64, device=likings.device)
    shares = torch.empty(tokens, routing.chosen, dtype=torch.float32, device=likings.device)
    _route[(tokens,)](
        likings, likings if preference is None else preference, choices, shares, routing.scale,
        EXPERTS=experts, BLOCK=triton.next_power_of_2(experts), CHOSEN=routing.chosen, NORMED=routing.renormalised,
        SIGMOID=routing.sigmoid, PREFERS=preference is not None,
        GROUPS=routing.groups, CHOSEN_GROUPS=routing.chosen_groups, JUDGED_BY=routing.judged_by,
        num_warps=1,
    )  # fmt: skip
    return choices, shares


def mix(
    x: Tensor,
    routed: tuple[Tensor, Tensor],
    gate_up: Tensor,
    down: Tensor,
    activation: Activation,
    biases: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`gate_up` [experts, 2 * inner, hidden], `down` [experts, hidden, inner]"""
    x = x.contiguous()
    choices, shares = routed
    (tokens, hidden), (experts, _, inner), chosen = x.shape, down.shape, choices.shape[1]
    pairs = tokens * chosen
    tiles = pairs // ROWS + min(experts, pairs)
    counts, owners, listed = (
        torch.empty(size, dtype=torch.int32, device=x.device) for size in (experts, tiles, tiles * ROWS)
    )
    _count[(experts,)](choices, counts, pairs, AT_ONCE=AT_ONCE)
    _list[(experts,)](
        choices, counts, owners, listed, pairs, tiles,
        EXPERTS=experts, BLOCK=triton.next_power_of_2(experts), ROWS=ROWS, AT_ONCE=AT_ONCE,
    )  # fmt: skip
    wide = x.dtype is torch.float32
    columns, depth = 64 // (1 + wide), 64 // (1 + wide)
    flags = {
        "ROWS": ROWS, "DEPTH": depth, "KIND": KINDS[activation], "PRECISION": "ieee" if wide else "tf32",
        "BIASED": biases is not None,
        "num_warps": 4, "num_stages": 3,
    }  # fmt: skip
    gate_up_bias, down_bias = biases or (x, x)  # an address, where there are none
    between, made, y = x.new_empty(pairs, inner), x.new_empty(pairs, hidden), torch.empty_like(x)
    _multiply[(triton.cdiv(inner, columns), tiles)](
        x, gate_up, gate_up_bias, between, listed, owners,
        HEIGHT=inner, WIDTH=hidden, SHARED=chosen, GATED=True, COLUMNS=columns, **flags,
    )  # fmt: skip
    columns *= 2  # there are two sums where there is a gate
    _multiply[(triton.cdiv(hidden, columns), tiles)](
        between, down, down_bias, made, listed, owners,
        HEIGHT=hidden, WIDTH=inner, SHARED=1, GATED=False, COLUMNS=columns, **flags,
    )  # fmt: skip
    _sum[(tokens, triton.cdiv(hidden, AT_ONCE))](made, shares, y, WIDTH=hidden, CHOSEN=chosen, BLOCK=AT_ONCE)
    return y


@triton.jit
def _route(
    likings_at, preference_at, choices_at, shares_at, scale,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr, CHOSEN: tl.constexpr, NORMED: tl.constexpr, SIGMOID: tl.constexpr,
    PREFERS: tl.constexpr, GROUPS: tl.constexpr, CHOSEN_GROUPS: tl.constexpr, JUDGED_BY: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    there = expert < EXPERTS
    likings = tl.load(likings_at + token * EXPERTS + expert, mask=there, other=float("-inf"))
    if SIGMOID:
        likelihood = 1 / (1 + tl.exp(-likings))
    else:
        likelihood = tl.exp(likings - tl.max(likings, 0))
        likelihood = likelihood / tl.sum(likelihood, 0)
    ranked = likelihood
    if PREFERS:
        ranked += tl.load(preference_at + expert, mask=there, other=0.0)
    ranked = tl.where(ranked == ranked, ranked, LOWEST)  # a choice is an expert, even among what is no number
    left = there
    if CHOSEN_GROUPS < GROUPS:
        group = expert // (EXPERTS // GROUPS)
        merit = tl.full([BLOCK], float("-inf"), tl.float32)  # of an expert's group
        for number in range(GROUPS):
            own = there & (group == number)
            judged = 0.0
            for _ in range(JUDGED_BY):
                best, first = _best(ranked, own, BLOCK)
                judged += best
                own = own & (expert != first)
            merit = tl.where(there & (group == number), judged, merit)
        others = there
        for _ in range(CHOSEN_GROUPS):
            _, first = _best(merit, others, BLOCK)
            others = others & (group != first // (EXPERTS // GROUPS))
        left = there & (others == 0)
    allowed = left
    for _ in range(CHOSEN):
        _, first = _best(ranked, left, BLOCK)
        left = left & (expert != first)
    taken = allowed & (left == 0)
    place = token * CHOSEN + tl.cumsum(taken.to(tl.int32), 0) - 1
    if NORMED:
        likelihood = likelihood / tl.sum(tl.where(taken, likelihood, 0.0), 0)
    tl.store(choices_at + place, expert.to(tl.int64), mask=taken)
    tl.store(shares_at + place, likelihood * scale, mask=taken)


@triton.jit
def _best(ranked, among, BLOCK: tl.constexpr):
    """The largest of these, and the first place where it is."""
    best = tl.max(tl.where(among, ranked, float("-inf")), 0)
    return best, tl.min(tl.where(among & (ranked == best), tl.arange(0, BLOCK), BLOCK), 0)


@triton.jit(do_not_specialize=["pairs"])  # they change with every step
def _count(choices_at, counts_at, pairs, AT_ONCE: tl.constexpr):
    expert = tl.program_id(0)
    count = tl.zeros([AT_ONCE], tl.int32)
    for start in range(0, pairs, AT_ONCE):
        pair = start + tl.arange(0, AT_ONCE)
        count += (tl.load(choices_at + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts_at + expert, tl.sum(count, 0))


@triton.jit(do_not_specialize=["pairs", "tiles"])
def _list(
    choices_at, counts_at, owners_at, listed_at, pairs, tiles,
    EXPERTS: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(0)
    other = tl.arange(0, BLOCK)
    counts = tl.load(counts_at + other, mask=other < EXPERTS, other=0)
    needed = (counts + ROWS - 1) // ROWS
    begin = tl.sum(tl.where(other < expert, needed, 0), 0)
    end = begin + tl.sum(tl.where(other == expert, needed, 0), 0)
    position = begin * ROWS
    for start in range(0, pairs, AT_ONCE):
        pair = start + tl.arange(0, AT_ONCE)
        ours = (tl.load(choices_at + pair, mask=pair < pairs, other=-1) == expert).to(tl.int32)
        tl.store(listed_at + position + tl.cumsum(ours, 0) - 1, pair, mask=ours != 0)
        position += tl.sum(ours, 0)
    row = tl.arange(0, ROWS)
    tl.store(listed_at + position + row, -1, mask=position + row < end * ROWS)
    for tile in range(begin, end):
        tl.store(owners_at + tile, expert)
    if expert == EXPERTS - 1:
        for tile in range(end, tiles):
            tl.store(owners_at + tile, -1)


@triton.jit
def _multiply(
    x_at, weights_at, bias_at, y_at, listed_at, owners_at,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, SHARED: tl.constexpr, GATED: tl.constexpr, BIASED: tl.constexpr, KIND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of `x` so many pairs share a row; a weight is [HEIGHT, WIDTH], or two of these."""
    tile = tl.program_id(1)
    expert = tl.load(owners_at + tile).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(listed_at + tile * ROWS + tl.arange(0, ROWS))
    column, inner = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    x_row = x_at + (pair // SHARED).to(tl.int64)[:, None] * WIDTH
    weight = weights_at + expert * (HEIGHT * WIDTH * (1 + GATED)) + column[None, :].to(tl.int64) * WIDTH
    y = tl.zeros([ROWS, COLUMNS], tl.float32)
    up = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, WIDTH, DEPTH):
        at = start + inner
        x = tl.load(x_row + at[None, :], mask=(pair >= 0)[:, None] & (at < WIDTH)[None, :], other=0.0)
        full = (at < WIDTH)[:, None] & (column < HEIGHT)[None, :]
        y = tl.dot(x, tl.load(weight + at[:, None], mask=full, other=0.0), y, input_precision=PRECISION)
        if GATED:
            second = tl.load(weight + HEIGHT * WIDTH + at[:, None], mask=full, other=0.0)
            up = tl.dot(x, second, up, input_precision=PRECISION)
    if BIASED:
        bias = bias_at + expert * (HEIGHT * (1 + GATED)) + column
        y += tl.load(bias, mask=column < HEIGHT, other=0.0)[None, :]
        if GATED:
            up += tl.load(bias + HEIGHT, mask=column < HEIGHT, other=0.0)[None, :]
    if GATED:  # rounded where the products, the activation and the gate would be
        y = _rounded(activated(_rounded(y, y_at), KIND), y_at) * _rounded(beside(_rounded(up, y_at), KIND), y_at)
    full = (pair >= 0)[:, None] & (column < HEIGHT)[None, :]
    tl.store(y_at + pair.to(tl.int64)[:, None] * HEIGHT + column[None, :], y.to(y_at.dtype.element_ty), mask=full)


@triton.jit
def _rounded(x, as_at):
    return x.to(as_at.dtype.element_ty).to(tl.float32)


@triton.jit
def _sum(made_at, shares_at, y_at, WIDTH: tl.constexpr, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
    token, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < WIDTH
    y = tl.zeros([BLOCK], tl.float32)
    for rank in range(CHOSEN):
        pair = token * CHOSEN + rank
        made = tl.load(made_at + pair * WIDTH + column, mask=there, other=0.0).to(tl.float32)
        y += made * tl.load(shares_at + pair)
    tl.store(y_at + token * WIDTH + column, y.to(y_at.dtype.element_ty), mask=there)
