/* Attention over the paged cache, read where it lies.

   A part of the work is a piece of one chunk and one key head: up to PIECE rows, a row being a token and one of the
   query heads that share the key head. It goes through the context in tiles of PANEL tokens, with the softmax kept up
   as it goes (Milakov and Gimelshein): of every row the largest score so far, the sum of its weights and the weighted
   sum of the values, which are scaled down when a larger score turns up.

       context    |........tile 0........|........tile 1........|....
       row a          [ lo ...................... hi )                what a row may see, by its own position
       row b                                  [ lo ........ hi )

   Tiles begin at multiples of PANEL, and one of which a row sees nothing leaves that row as it is, to the bit. So a
   row's result depends on its own position and context alone, not on how its sequence was cut into chunks or what else
   is in the batch. What lies beyond the context may be anything: its scores are replaced and its values not read. */

#include <stdlib.h>

#include "cache.h"
#include "parallel.h"
#include "tile.h"

#define PIECE (8 * ROWS)
#define SMALLEST_BLOCK 8

struct attending {
    const struct form *form;
    const struct batch *batch;
    const element *q; /* [tokens, heads, D] */
    struct layer_cache cache;
    element *out; /* [tokens, heads, D] */
    const long *first_part; /* [chunks + 1] */
};

/* A run of pairs of tokens whose values lie one after another. */
struct run {
    const element *values;
    long token, pairs; /* of the tile: where it begins; how many */
};

/* The tokens of a tile [start, start + PANEL) of which somebody in the piece sees something: [from, to). */
struct tile {
    long start, from, to;
    const element *keys[VECTORS]; /* groups of LANES tokens */
    long key_stride;              /* elements from one pair of dimensions to the next */
    struct run runs[PANEL / SMALLEST_BLOCK + 1];
    long num_runs, value_stride; /* elements from one pair of tokens to the next */
};

struct piece {
    const struct form *form;
    struct layer_cache cache;
    const int32_t *blocks; /* of the sequence */
    long kv_head, rows, padded; /* `padded`: D, filled up to whole PANELs */
    long lo[PIECE], hi[PIECE];
    float top[PIECE];           /* largest score, in powers of two */
    vec weight_sum[PIECE];      /* lane by lane */
    operand weights[ROWS * PANEL];
    operand *queries;  /* [rows, D] */
    vec *sums;         /* [rows, padded / LANES] */
    element *key_copy, *value_copy; /* [D / 2, 2 * PANEL], [PANEL / 2, 2 * padded]: what must be mended before use */
};

INLINE const element *block_of(const struct piece *p, const element *cache, long token) {
    long size = p->cache.block_size;
    return cache + (p->blocks[token / size] * p->form->kv_heads + p->kv_head) * size * p->form->dim;
}

/* Blocks lie anywhere, so that the processor cannot guess the next one: ask for it while this one is computed. */
static void prefetch(const struct piece *p, long start, long end) {
    long bytes = p->cache.block_size * p->form->dim * sizeof(element);
    for (long token = start; token < least(start + PANEL, end); token += p->cache.block_size) {
        const char *keys = (const char *)block_of(p, p->cache.keys, token);
        const char *values = (const char *)block_of(p, p->cache.values, token);
        for (long i = 0; i < bytes; i += 64) {
            __builtin_prefetch(keys + i);
            __builtin_prefetch(values + i);
        }
    }
}

/* A vector of the tile is LANES tokens. */
static void find_keys(const struct piece *p, struct tile *t) {
    long size = p->cache.block_size, pairs = p->form->dim / 2;
    t->key_stride = size < LANES ? 2 * PANEL : 2 * size;
    for (long v = 0; v < VECTORS; v++) {
        long token = t->start + v * LANES;
        if (token >= t->to || token + LANES <= t->from) {
            t->keys[v] = NULL; /* seen by nobody */
        } else if (size >= LANES) {
            t->keys[v] = block_of(p, p->cache.keys, token) + token % size * 2;
        } else { /* blocks are put side by side */
            t->keys[v] = p->key_copy + v * 2 * LANES;
            for (long at = 0; at < LANES; at += size) {
                long from = token + at;
                if (from >= t->to || from + size <= t->from)
                    continue;
                const element *keys = block_of(p, p->cache.keys, from);
                for (long pair = 0; pair < pairs; pair++)
                    widen_group(p->key_copy + pair * 2 * PANEL + v * 2 * LANES, at, keys + pair * 2 * size, size);
            }
        }
    }
    const element *some = t->keys[0];
    for (long v = 0; !some; v++)
        some = t->keys[v];
    for (long v = 0; v < VECTORS; v++)
        t->keys[v] = t->keys[v] ? t->keys[v] : some; /* the scores are replaced anyway */
}

/* Copy the values of a pair of tokens, with groups filled up to LANES; of the second token only if `both`. */
static void copy_values(element *to, const element *from, long dim, int both) {
    for (long d = 0; d < dim; d += LANES) {
        long lanes = least(LANES, dim - d);
        widen_group(to + 2 * d, 0, from + 2 * d, lanes);
        for (long lane = 0; lane < lanes && !both; lane++)
            to[2 * d + slot(lane, 1, LANES)] = 0;
    }
}

static void add_run(struct tile *t, const element *values, long token, long pairs) {
    if (pairs)
        t->runs[t->num_runs++] = (struct run){values, token - t->start, pairs};
}

/* They are used where they lie, except a last token whose neighbour is not stored yet, and groups that are not full. */
static void find_values(const struct piece *p, struct tile *t) {
    long size = p->cache.block_size, dim = p->form->dim;
    t->value_stride = 2 * ceil_div(dim, LANES) * LANES;
    t->num_runs = 0;
    for (long token = t->from & ~1L, end; token < t->to; token = end) {
        end = least(token / size * size + size, t->to);
        const element *values = block_of(p, p->cache.values, token) + token % size * dim;
        long pairs = ceil_div(end - token, 2), as_they_are = dim % LANES ? 0 : (end - token) / 2;
        element *copy = p->value_copy + (token - t->start) / 2 * t->value_stride;
        for (long pair = as_they_are; pair < pairs; pair++)
            copy_values(copy + pair * t->value_stride, values + pair * 2 * dim, dim, token + 2 * pair + 1 < end);
        add_run(t, values, token, as_they_are);
        add_run(t, copy + as_they_are * t->value_stride, token + 2 * as_they_are, pairs - as_they_are);
    }
}

/* Scores of one row, in a tile, to weights; what the row has so far is scaled to them. */
static void soften(struct piece *p, const struct tile *t, long row, const vec *products, operand *weights) {
    const struct form *f = p->form;
    ints lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    vec score[VECTORS], top = all(p->top[row]);
    for (long v = 0; v < VECTORS; v++) {
        score[v] = products[v] * (f->scale * (f->softcap ? 1 : LOG2_E));
        if (f->softcap)
            score[v] = f->softcap * LOG2_E * tanh_of(score[v] / f->softcap);
        int from = (int)(p->lo[row] - t->start - v * LANES), to = (int)(p->hi[row] - t->start - v * LANES);
        if (from > 0 || to < LANES)
            score[v] = choose((lane >= from) & (lane < to), score[v], all(-INFINITY));
        top = larger(score[v], top);
    }
    float highest = largest(top);
    float factor = 1;
    if (highest > p->top[row]) {
        factor = p->top[row] == -INFINITY ? 0 : exp2_of(all(p->top[row] - highest))[0];
        vec *sums = p->sums + row * p->padded / LANES;
        for (long v = 0; v < p->padded / LANES; v++)
            sums[v] *= factor;
        p->top[row] = highest;
    }
    vec total = p->weight_sum[row] * factor;
    for (long v = 0; v < VECTORS; v++) {
        vec weight = highest == -INFINITY ? all(0) : exp2_of(score[v] - highest);
        total += round_to_operand(weight);
        store_operands(weights + v * LANES, weight);
    }
    p->weight_sum[row] = total;
}

static void attend_tile(struct piece *p, const struct tile *t) {
    long width = p->padded / LANES, dim = p->form->dim;
    for (long row = 0; row < p->rows; row += ROWS) {
        long rows = least(ROWS, p->rows - row), from = t->to, to = t->from;
        for (long r = row; r < row + rows; r++) {
            from = least(from, p->lo[r]);
            to = most(to, p->hi[r]);
        }
        if (from >= t->start + PANEL || to <= t->start)
            continue;
        vec products[ROWS * VECTORS] = {0};
        add_tile(rows, products, VECTORS, p->queries + row * dim, dim, t->keys, t->key_stride, dim / 2);
        for (long r = 0; r < rows; r++)
            soften(p, t, row + r, products + r * VECTORS, p->weights + r * PANEL);
        for (long v = 0; v < width; v += VECTORS)
            for (const struct run *run = t->runs; run < t->runs + t->num_runs; run++) {
                const element *columns[VECTORS];
                for (long i = 0; i < VECTORS; i++) /* beyond D: any, their sums are for nobody */
                    columns[i] = run->values + ((v + i) * LANES < dim ? v + i : v) * 2 * LANES;
                add_tile(rows, p->sums + row * width + v, width, p->weights + run->token, PANEL, columns,
                         t->value_stride, run->pairs);
            }
    }
}

/* Rows of a chunk are numbered token by token, then head by head of those that share a key head. */
struct rows {
    long chunk, kv_head, first, count, group;
};

static struct rows rows_of(const struct attending *a, long part) {
    const struct form *f = a->form;
    long chunk = 0, beyond = a->batch->chunks; /* parts of chunk: first_part[chunk] <= part < first_part[chunk + 1] */
    while (beyond - chunk > 1) {
        long middle = (chunk + beyond) / 2;
        *(a->first_part[middle] <= part ? &chunk : &beyond) = middle;
    }
    long group = f->heads / f->kv_heads, tokens = a->batch->query_start[chunk + 1] - a->batch->query_start[chunk];
    long local = part - a->first_part[chunk], first = local / f->kv_heads * PIECE;
    return (struct rows){chunk, local % f->kv_heads, first, least(PIECE, tokens * group - first), group};
}

INLINE long element_of(const struct attending *a, const struct rows *r, long row) {
    long token = a->batch->query_start[r->chunk] + (r->first + row) / r->group;
    return (token * a->form->heads + r->kv_head * r->group + (r->first + row) % r->group) * a->form->dim;
}

static void prepare(struct piece *p, const struct attending *a, const struct rows *r) {
    const struct form *f = p->form;
    const int32_t *query_start = a->batch->query_start + r->chunk;
    long context = a->batch->context_len[r->chunk], start = context - (query_start[1] - query_start[0]);
    for (long row = 0; row < r->count; row++) {
        const element *q = a->q + element_of(a, r, row);
        for (long d = 0; d < f->dim; d += LANES) {
            operand some[LANES];
            store_operands(some, load_some(q + d, f->dim - d));
            memcpy(p->queries + row * f->dim + d, some, least(LANES, f->dim - d) * sizeof(operand));
        }
        long position = start + (r->first + row) / r->group;
        p->lo[row] = f->window ? most(0, position - f->window + 1) : 0;
        p->hi[row] = f->causal ? position + 1 : f->window ? least(context, position + f->window) : context;
        p->top[row] = -INFINITY;
        p->weight_sum[row] = all(0);
    }
    memset(p->sums, 0, r->count * p->padded * sizeof(float));
}

static void attend(const void *job, long part) {
    const struct attending *a = job;
    struct rows r = rows_of(a, part);
    long dim = a->form->dim, padded = ceil_div(dim, PANEL) * PANEL;
    long sums = r.count * padded * sizeof(float), queries = r.count * ceil_div(dim, 32) * 32 * sizeof(operand);
    long keys = dim * PANEL * sizeof(element), values = padded * PANEL * sizeof(element);
    char *memory = aligned_alloc(64, sums + queries + keys + values);
    struct piece p = {
        .form = a->form,
        .cache = a->cache,
        .blocks = a->batch->block_table + r.chunk * a->batch->table_width,
        .kv_head = r.kv_head,
        .rows = r.count,
        .padded = padded,
        .sums = (vec *)memory,
        .queries = (operand *)(memory + sums),
        .key_copy = (element *)(memory + sums + queries),
        .value_copy = (element *)(memory + sums + queries + keys),
    };
    if (r.count <= ROWS && !a->form->window) /* where it will begin */
        prefetch(&p, 0, a->batch->context_len[r.chunk]);
    prepare(&p, a, &r);
    long from = p.lo[0], to = p.hi[r.count - 1]; /* both grow with the position */
    for (long start = from / PANEL * PANEL; start < to; start += PANEL) {
        if (r.count <= ROWS) /* else there is so much to compute that the memory keeps up */
            prefetch(&p, start + PANEL, to);
        struct tile t = {.start = start, .from = most(start, from), .to = least(start + PANEL, to)};
        find_keys(&p, &t);
        find_values(&p, &t);
        attend_tile(&p, &t);
    }
    for (long row = 0; row < r.count; row++) {
        element *out = a->out + element_of(a, &r, row);
        float factor = 1 / sum(p.weight_sum[row]);
        for (long d = 0; d < dim; d += LANES)
            store_some(out + d, p.sums[(row * padded + d) / LANES] * factor, dim - d);
    }
    free(memory);
}

void attention(const struct form *form, const struct batch *batch, const element *q, element *keys, element *values,
               long block_size, element *out) {
    long *first_part = malloc((batch->chunks + 1) * sizeof(long)), group = form->heads / form->kv_heads;
    double cost = 0;
    first_part[0] = 0;
    for (long i = 0; i < batch->chunks; i++) {
        long tokens = batch->query_start[i + 1] - batch->query_start[i];
        first_part[i + 1] = first_part[i] + ceil_div(tokens * group, PIECE) * form->kv_heads;
        cost += 2.0 * tokens * form->heads * form->dim * batch->context_len[i];
    }
    struct attending job = {form, batch, q, {keys, values, block_size}, out, first_part};
    in_parts(first_part[batch->chunks], cost, attend, &job);
    free(first_part);
}
