/* Attention over the paged cache, read where it lies.

   A piece of the work is of one chunk and one key head: up to PIECE rows, a row being a token and one of the query
   heads that share the key head; a part is a few pieces. A piece goes through the context in stretches, with the
   softmax kept up as it goes (Milakov and Gimelshein): of every row the largest score so far, the sum of its weights
   and the weighted sum of the values, which are scaled down when a larger score turns up.

       context    |.......stretch 0.......|.......stretch 1.......|....
       row a          [ lo ...................... hi )                what a row may see, by its own position
       row b                                  [ lo ........ hi )

   Stretches begin at multiples of their length, and one of which a row sees nothing leaves that row as it is, to the
   bit; so does a token that it does not see, whose weight is 0. So a row's result depends on its own position and
   context alone, not on how its sequence was cut into chunks or what else is in the batch. What lies beyond the context
   may be anything: its scores are replaced and its values not read. */

#include <stdlib.h>

#include "kernels.h"
#include "parallel.h"
#include "stretch.h"

#define PIECE 48 /* a multiple of ROWS, whatever it is */
#define PIECES 8 /* of a part, at most */

struct attending {
    const struct form *form;
    const struct batch *batch;
    const element *q; /* [tokens, heads, D] */
    struct layer_cache cache;
    element *out;            /* [tokens, heads, D of values] */
    const long *first_piece; /* [chunks + 1] */
    long pieces_per_part;
};

struct piece {
    const struct form *form;
    long rows, shaped, block_size, filled, padded; /* D, to whole STEPs; that of values, to whole PANELs */
    long lo[PIECE], hi[PIECE], position[PIECE], head[PIECE];
    float top[PIECE];      /* largest score, in powers of two */
    vec weight_sum[PIECE]; /* lane by lane */
    vec products[ROWS * STRETCH / LANES];
    operand weights[ROWS * STRETCH];
    operand *queries; /* [rows, filled] */
    vec *sums;        /* [rows, padded / LANES] */
};

/* Blocks lie anywhere, so that the processor cannot guess the next one: those of the next stretch, of this piece or the
   one after it, are asked for while this one is computed. With more than ROWS rows there is so much to compute that the
   memory keeps up. */
struct ahead {
    const element *keys, *values; /* of the cache */
    const long *blocks; /* their first rows */
    long count, size;   /* of blocks; of a block, in rows */
};

/* products [rows, STRETCH / LANES] of queries and keys, where they are seen. */
static void score(struct piece *p, const struct stretch *t, const struct ahead *ahead, long row, long rows, long from,
                  long to) {
    struct run run = {.pairs = p->filled / 2};
    struct factor f = {.runs = &run, .num_runs = 1, .stride = t->key_stride};
    const long *block = ahead->blocks;
    for (long token = from / PANEL * PANEL; token < to; token += PANEL) {
        for (long i = 0; i < PANEL && block < ahead->blocks + ahead->count; i += p->block_size, block++)
            fetch(ahead->keys + *block * p->form->dim, ahead->size * p->form->dim);
        const element *const *keys = t->keys + token / LANES;
        run.groups = keys[0];
        for (long v = 0; v < VECTORS; v++)
            f.offset[v] = keys[v] - keys[0];
        add_tile(rows, 1, p->products + token / LANES, STRETCH / LANES, p->queries + row * p->filled, p->filled, &f);
    }
}

/* How far LANES tokens are from one which is so much after the first of them. */
INLINE vec apart(long after) {
    vec distance;
    for (int i = 0; i < LANES; i++)
        distance[i] = after > i ? after - i : i - after;
    return distance;
}

/* Products of a row, in a stretch, to weights; what the row has so far is scaled to them. */
static void soften(struct piece *p, const struct stretch *t, long row, vec *products, operand *weights) {
    const struct form *f = p->form;
    long lo = p->lo[row] - t->start, hi = p->hi[row] - t->start;
    long first = most(lo, 0) / LANES, last = ceil_div(least(hi, STRETCH), LANES); /* vectors of which it sees some */
    float base = f->softcap ? f->softcap : f->scale, unit = LOG2_E * base;
    float slope = f->slopes ? f->slopes[p->head[row]] / base : 0;
    ints lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    vec top = all(-INFINITY);
    for (long v = first; v < last; v++) {
        if (f->softcap)
            products[v] = tanh_of(products[v] * (f->scale / f->softcap));
        if (f->slopes)
            products[v] -= slope * apart(p->position[row] - t->start - v * LANES);
        int from = (int)(lo - v * LANES), to = (int)(hi - v * LANES);
        if (from > 0 || to < LANES)
            products[v] = choose((lane >= from) & (lane < to), products[v], all(-INFINITY));
        top = larger(products[v], top);
    }
    float before = p->top[row], highest = largest(top) * unit;
    if (highest > before) {
        p->top[row] = highest;
        if (before > -INFINITY) {
            float factor = exp2_of(all(before - highest))[0];
            vec *sums = p->sums + row * p->padded / LANES;
            for (long v = 0; v < p->padded / LANES; v++)
                sums[v] *= factor;
            p->weight_sum[row] *= factor;
        }
    } else {
        highest = before;
    }
    vec total = p->weight_sum[row];
    for (long v = 0; v < STRETCH / LANES; v++) {
        vec weight = {0};
        if (first <= v && v < last) {
            weight = exp2_of(products[v] * unit - highest);
            total += round_to_operand(weight);
        }
        store_operands(weights + v * LANES, weight);
    }
    p->weight_sum[row] = total;
}

/* sums += weights x values */
static void add_values(struct piece *p, const struct stretch *t, const struct ahead *ahead, long row, long rows,
                       long from, long to) {
    struct run runs[BLOCKS + 1];
    long dim = value_dim(p->form), width = p->padded / LANES, share = ahead->size * dim / ceil_div(width, VECTORS);
    struct factor f = {.runs = runs, .stride = t->value_stride, .ahead = share};
    for (long v = 0; v < width; v += VECTORS) {
        f.num_runs = 0;
        for (const struct run *run = t->runs; run < t->runs + t->num_runs; run++) {
            if (run->at >= to || run->at + 2 * run->pairs <= from)
                continue;
            long i = f.num_runs++;
            runs[i] = *run;
            if (i < ahead->count)
                runs[i].ahead = ahead->values + ahead->blocks[i] * dim + v / VECTORS * share;
        }
        for (long i = 0; i < VECTORS; i++) /* beyond D: any, their sums are for nobody */
            f.offset[i] = ((v + i) * LANES < dim ? v + i : v) * 2 * LANES;
        add_tile(rows, 0, p->sums + row * width + v, width, p->weights, STRETCH, &f);
    }
}

static void attend_stretch(struct piece *p, const struct stretch *t, const struct ahead *ahead) {
    for (long row = 0; row < p->rows; row += ROWS) {
        long rows = least(ROWS, p->rows - row);
        long from = most(t->from, p->lo[row]) - t->start, to = least(t->to, p->hi[row + rows - 1]) - t->start;
        if (from >= to) /* both grow with the position */
            continue;
        if (rows != p->shaped)
            shape_tiles(p->shaped = rows, least(STEP, p->block_size) / 2);
        score(p, t, ahead, row, rows, from, to);
        for (long r = 0; r < rows; r++)
            soften(p, t, row + r, p->products + r * STRETCH / LANES, p->weights + r * STRETCH);
        add_values(p, t, ahead, row, rows, from, to);
    }
}

/* Rows of a chunk are numbered token by token, then head by head of those that share a key head. */
struct rows {
    long chunk, kv_head, first, count, group;
    long context, position; /* of the chunk: tokens in all; of its first row */
};

static struct rows rows_of(const struct attending *a, long piece) {
    const struct form *f = a->form;
    long chunk = 0, beyond = a->batch->chunks; /* first_piece[chunk] <= piece < first_piece[chunk + 1] */
    while (beyond - chunk > 1) {
        long middle = (chunk + beyond) / 2;
        *(a->first_piece[middle] <= piece ? &chunk : &beyond) = middle;
    }
    long group = f->heads / f->kv_heads, tokens = a->batch->query_start[chunk + 1] - a->batch->query_start[chunk];
    long local = piece - a->first_piece[chunk], first = local / f->kv_heads * PIECE;
    long context = a->batch->context_len[chunk];
    return (struct rows){
        chunk, local % f->kv_heads, first, least(PIECE, tokens * group - first), group, context, context - tokens,
    };
}

/* What a row sees: both grow with its position. */
INLINE long lo_of(const struct form *f, const struct rows *r, long row) {
    long position = r->position + (r->first + row) / r->group;
    return f->window ? most(0, position - f->window + 1) : 0;
}

INLINE long hi_of(const struct form *f, const struct rows *r, long row) {
    long position = r->position + (r->first + row) / r->group;
    return f->causal ? position + 1 : f->window ? least(r->context, position + f->window) : r->context;
}

/* Its number among all query heads of all tokens. */
INLINE long head_of(const struct attending *a, const struct rows *r, long row) {
    long token = a->batch->query_start[r->chunk] + (r->first + row) / r->group;
    return token * a->form->heads + r->kv_head * r->group + (r->first + row) % r->group;
}

static void prepare(struct piece *p, const struct attending *a, const struct rows *r) {
    const struct form *f = p->form;
    p->rows = r->count;
    for (long row = 0; row < r->count; row++) {
        operand *query = p->queries + row * p->filled;
        to_operands(query, a->q + head_of(a, r, row) * f->dim, f->dim);
        memset(query + f->dim, 0, (p->filled - f->dim) * sizeof(operand));
        p->position[row] = r->position + (r->first + row) / r->group;
        p->head[row] = r->kv_head * r->group + (r->first + row) % r->group;
        p->lo[row] = lo_of(f, r, row);
        p->hi[row] = hi_of(f, r, row);
        p->top[row] = -INFINITY;
        p->weight_sum[row] = all(0);
    }
    memset(p->sums, 0, r->count * p->padded * sizeof(float));
}

/* The stretch that begins at `start`, or the first one of the piece. */
static void begin(struct stretch *t, const struct attending *a, const struct rows *r, long start) {
    long from = lo_of(a->form, r, 0), to = hi_of(a->form, r, r->count - 1);
    t->start = most(start, from / STRETCH * STRETCH);
    t->from = most(t->start, from);
    t->to = least(t->start + STRETCH, to);
    find_blocks(t, a->form, &a->cache, a->batch->block_table + r->chunk * a->batch->table_width, r->kv_head);
}

static void write(const struct piece *p, const struct attending *a, const struct rows *r) {
    long dim = value_dim(p->form);
    for (long row = 0; row < r->count; row++) {
        element *out = a->out + head_of(a, r, row) * dim;
        float total = sum(p->weight_sum[row]);
        if (p->form->sinks)
            total += exp2_of(all(p->form->sinks[p->head[row]] * LOG2_E - p->top[row]))[0];
        float factor = 1 / total;
        for (long d = 0; d < dim; d += LANES)
            store_some(out + d, p->sums[(row * p->padded + d) / LANES] * factor, dim - d);
    }
}

static void attend(const void *job, long part) {
    const struct attending *a = job;
    long filled = ceil_div(a->form->dim, STEP) * STEP, padded = ceil_div(value_dim(a->form), PANEL) * PANEL;
    long sums = PIECE * padded * sizeof(float), queries = PIECE * filled * sizeof(operand);
    long keys = filled * STRETCH * sizeof(element), values = padded * STRETCH * sizeof(element);
    char *memory = aligned_alloc(64, ceil_div(sums + queries + keys + values, 64) * 64);
    element *key_copy = (element *)(memory + sums), *value_copy = (element *)(memory + sums + keys);
    struct piece p;
    p.form = a->form;
    p.block_size = a->cache.block_size;
    p.filled = filled;
    p.padded = padded;
    p.shaped = 0;
    p.sums = (vec *)memory;
    p.queries = (operand *)(memory + sums + keys + values);
    long piece = part * a->pieces_per_part;
    long beyond = least(piece + a->pieces_per_part, a->first_piece[a->batch->chunks]);
    struct rows r = rows_of(a, piece), then = r;
    struct stretch two[2], *t = two, *next = two + 1;
    struct ahead ahead = {a->cache.keys, a->cache.values, NULL, 0, p.block_size};
    begin(t, a, &r, 0);
    for (; piece < beyond; piece++, r = then) {
        prepare(&p, a, &r);
        for (int done = 0; !done;) {
            done = t->to == p.hi[r.count - 1];
            ahead.count = 0;
            if (!done || piece + 1 < beyond) {
                then = done ? rows_of(a, piece + 1) : r;
                begin(next, a, &then, done ? 0 : t->start + STRETCH);
                ahead.blocks = next->blocks + next->first_block;
                ahead.count = r.count <= ROWS ? next->last_block - next->first_block : 0;
            }
            find_keys(t, a->form, &a->cache, key_copy);
            find_values(t, a->form, &a->cache, value_copy);
            attend_stretch(&p, t, &ahead);
            struct stretch *used = t;
            t = next, next = used;
        }
        write(&p, a, &r);
    }
    release_tiles();
    free(memory);
}

void attention(const struct form *form, const struct batch *batch, const element *q, element *keys, element *values,
               long block_size, element *out) {
    long *first_piece = malloc((batch->chunks + 1) * sizeof(long)), group = form->heads / form->kv_heads;
    double cost = 0;
    first_piece[0] = 0;
    for (long i = 0; i < batch->chunks; i++) {
        long tokens = batch->query_start[i + 1] - batch->query_start[i];
        first_piece[i + 1] = first_piece[i] + ceil_div(tokens * group, PIECE) * form->kv_heads;
        cost += 2.0 * tokens * form->heads * form->dim * batch->context_len[i];
    }
    long pieces = first_piece[batch->chunks], per_part = most(1, least(PIECES, pieces / (8 * threads())));
    struct attending job = {form, batch, q, {keys, values, block_size}, out, first_piece, per_part};
    in_parts(ceil_div(pieces, per_part), cost, attend, &job);
    free(first_piece);
}
