/* Attention over the paged cache, read where it lies.

   A part of the work is a piece of one chunk and one key head: up to PIECE rows, a row being a token and one of the
   query heads that share the key head. It goes through the context in stretches, with the softmax kept up as it goes
   (Milakov and Gimelshein): of every row the largest score so far, the sum of its weights and the weighted sum of the
   values, which are scaled down when a larger score turns up.

       context    |.......stretch 0.......|.......stretch 1.......|....
       row a          [ lo ...................... hi )                what a row may see, by its own position
       row b                                  [ lo ........ hi )

   Stretches begin at multiples of their length, and one of which a row sees nothing leaves that row as it is, to the
   bit; so does a token that it does not see, whose weight is 0. So a row's result depends on its own position and
   context alone, not on how its sequence was cut into chunks or what else is in the batch. What lies beyond the context
   may be anything: its scores are replaced and its values not read. */

#include <stdlib.h>

#include "cache.h"
#include "parallel.h"
#include "tile.h"

#define PIECE 48    /* a multiple of ROWS, whatever it is */
#define STRETCH 256 /* tokens, a multiple of PANEL and of blocks */
#define SMALLEST_BLOCK 8

struct attending {
    const struct form *form;
    const struct batch *batch;
    const element *q; /* [tokens, heads, D] */
    struct layer_cache cache;
    element *out; /* [tokens, heads, D] */
    const long *first_part; /* [chunks + 1] */
};

/* The tokens of [start, start + STRETCH) of which somebody in the piece sees something: [from, to). */
struct stretch {
    long start, from, to;
    const element *keys[STRETCH / LANES]; /* groups of LANES tokens */
    long key_stride;                      /* elements from one pair of dimensions to the next */
    struct run runs[STRETCH / SMALLEST_BLOCK + 1]; /* of pairs of tokens */
    long num_runs, value_stride;                   /* elements from one pair of tokens to the next */
};

struct piece {
    const struct form *form;
    struct layer_cache cache;
    const int32_t *blocks;              /* of the sequence */
    long kv_head, rows, shaped, filled, padded; /* D, filled up to whole STEPs, and to whole PANELs */
    long lo[PIECE], hi[PIECE];
    float top[PIECE];      /* largest score, in powers of two */
    vec weight_sum[PIECE]; /* lane by lane */
    vec products[ROWS * STRETCH / LANES];
    operand weights[ROWS * STRETCH];
    operand *queries; /* [rows, filled] */
    vec *sums;        /* [rows, padded / LANES] */
    element *key_copy, *value_copy; /* [filled / 2, 2 * STRETCH], [STRETCH / 2, 2 * padded]: what must be mended */
};

INLINE const element *block_of(const struct piece *p, const element *cache, long token) {
    long size = p->cache.block_size;
    return cache + (p->blocks[token / size] * p->form->kv_heads + p->kv_head) * size * p->form->dim;
}

/* Blocks lie anywhere, so that the processor cannot guess the next one: ask for it while this one is computed. */
static void prefetch(const struct piece *p, const element *cache, long start, long end) {
    long bytes = p->cache.block_size * p->form->dim * sizeof(element);
    for (long token = start; token < least(start + PANEL, end); token += p->cache.block_size) {
        const char *block = (const char *)block_of(p, cache, token);
        for (long i = 0; i < bytes; i += 64)
            __builtin_prefetch(block + i);
    }
}

/* Keys of LANES tokens as a group of their own, filled up to whole STEPs with zeros. */
static void copy_keys(const struct piece *p, element *to, const struct stretch *t, long token) {
    long size = p->cache.block_size, width = least(size, LANES), dim = p->form->dim;
    for (long at = 0; at < LANES; at += width) {
        if (token + at >= t->to || token + at + width <= t->from)
            continue;
        const element *keys = block_of(p, p->cache.keys, token + at) + (token + at) % size * 2;
        for (long pair = 0; pair < dim / 2; pair++)
            widen_group(to + pair * 2 * LANES, at, keys + pair * 2 * size, width);
    }
    memset(to + dim * LANES, 0, (p->filled - dim) * LANES * sizeof(element));
}

static void find_keys(const struct piece *p, struct stretch *t) {
    long size = p->cache.block_size, in_place = size >= LANES && p->filled == p->form->dim;
    t->key_stride = 2 * (in_place ? size : LANES);
    const element *some = NULL;
    for (long v = 0; v < STRETCH / LANES; v++) {
        long token = t->start + v * LANES;
        t->keys[v] = some; /* if seen by nobody: its scores are replaced anyway */
        if (token >= t->to || token + LANES <= t->from)
            continue;
        if (in_place) {
            t->keys[v] = block_of(p, p->cache.keys, token) + token % size * 2;
        } else {
            t->keys[v] = p->key_copy + v * p->filled * LANES;
            copy_keys(p, p->key_copy + v * p->filled * LANES, t, token);
        }
        some = t->keys[v];
    }
    for (long v = 0; !t->keys[v]; v++)
        t->keys[v] = some;
}

/* The values of a pair of tokens, of which `stored` are there, with groups filled up to LANES. */
static void copy_values(element *to, const element *from, long dim, long stored) {
    for (long d = 0; d < dim; d += LANES) {
        long lanes = least(LANES, dim - d);
        if (stored > 0)
            widen_group(to + 2 * d, 0, from + 2 * d, lanes);
        for (long lane = 0; lane < lanes; lane++)
            for (long token = most(stored, 0); token < 2; token++)
                to[2 * d + slot(lane, token, LANES)] = 0;
    }
}

static void add_run(struct stretch *t, const element *values, long token, long pairs) {
    if (pairs)
        t->runs[t->num_runs++] = (struct run){values, token - t->start, pairs};
}

/* They are used where they lie, except what a token that is not stored yet shares, a pair or on AMX a block, and groups
   that are not full. */
static void find_values(const struct piece *p, struct stretch *t) {
    long size = p->cache.block_size, dim = p->form->dim, shared = AMX ? size : 2;
    t->value_stride = 2 * ceil_div(dim, LANES) * LANES;
    t->num_runs = 0;
    for (long token = t->from / shared * shared, end; token < t->to; token = end) {
        end = least(token / size * size + size, t->to);
        const element *values = block_of(p, p->cache.values, token) + token % size * dim;
        long pairs = ceil_div(end - token, shared) * shared / 2;
        long as_they_are = dim % LANES ? 0 : (end - token) / shared * shared / 2;
        element *copy = p->value_copy + (token - t->start) / 2 * t->value_stride;
        for (long pair = as_they_are; pair < pairs; pair++)
            copy_values(copy + pair * t->value_stride, values + pair * 2 * dim, dim, end - token - 2 * pair);
        add_run(t, values, token, as_they_are);
        add_run(t, copy + as_they_are * t->value_stride, token + 2 * as_they_are, pairs - as_they_are);
    }
}

/* products [rows, STRETCH / LANES] of queries and keys, where they are seen. */
static void score(struct piece *p, const struct stretch *t, long row, long rows, long from, long to) {
    struct run run = {.at = 0, .pairs = p->filled / 2};
    struct factor f = {&run, 1, t->key_stride, {0}};
    for (long token = from / PANEL * PANEL; token < to; token += PANEL) {
        if (p->rows <= ROWS) { /* else there is so much to compute that the memory keeps up */
            prefetch(p, p->cache.values, t->start + token, t->to);
            prefetch(p, p->cache.keys, t->start + token + PANEL, t->to);
        }
        const element *const *keys = t->keys + token / LANES;
        run.groups = keys[0];
        for (long v = 0; v < VECTORS; v++)
            f.offset[v] = keys[v] - keys[0];
        add_tile(rows, 1, p->products + token / LANES, STRETCH / LANES, p->queries + row * p->filled, p->filled, &f);
    }
}

/* Products of a row, in a stretch, to weights; what the row has so far is scaled to them. */
static void soften(struct piece *p, const struct stretch *t, long row, vec *products, operand *weights) {
    const struct form *f = p->form;
    long lo = p->lo[row] - t->start, hi = p->hi[row] - t->start;
    long first = most(lo, 0) / LANES, last = ceil_div(least(hi, STRETCH), LANES); /* vectors of which it sees something */
    float unit = LOG2_E * (f->softcap ? f->softcap : f->scale);
    ints lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    vec top = all(-INFINITY);
    for (long v = first; v < last; v++) {
        if (f->softcap)
            products[v] = tanh_of(products[v] * (f->scale / f->softcap));
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
static void add_values(struct piece *p, const struct stretch *t, long row, long rows, long from, long to) {
    const struct run *first = t->runs, *last = t->runs + t->num_runs;
    while (first < last && first->at + 2 * first->pairs <= from)
        first++;
    while (last > first && last[-1].at >= to)
        last--;
    long width = p->padded / LANES;
    struct factor f = {.num_runs = last - first, .stride = t->value_stride};
    struct run runs[STRETCH / SMALLEST_BLOCK + 1];
    memcpy(runs, first, f.num_runs * sizeof(struct run));
    f.runs = runs;
    for (long v = 0; v < width; v += VECTORS) {
        for (long i = 0; i < VECTORS; i++) /* beyond D: any, their sums are for nobody */
            f.offset[i] = ((v + i) * LANES < p->form->dim ? v + i : v) * 2 * LANES;
        add_tile(rows, 0, p->sums + row * width + v, width, p->weights, STRETCH, &f);
    }
}

static void attend_stretch(struct piece *p, const struct stretch *t) {
    for (long row = 0; row < p->rows; row += ROWS) {
        long rows = least(ROWS, p->rows - row);
        long from = most(t->from, p->lo[row]) - t->start, to = least(t->to, p->hi[row + rows - 1]) - t->start;
        if (from >= to) /* both grow with the position */
            continue;
        if (rows != p->shaped)
            shape_tiles(p->shaped = rows, least(STEP, p->cache.block_size) / 2);
        score(p, t, row, rows, from, to);
        for (long r = 0; r < rows; r++)
            soften(p, t, row + r, p->products + r * STRETCH / LANES, p->weights + r * STRETCH);
        add_values(p, t, row, rows, from, to);
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
        operand *query = p->queries + row * p->filled;
#if OPERAND_IS_FLOAT
        for (long d = 0; d < f->dim; d += LANES)
            store_some_floats(query + d, load_some(q + d, f->dim - d), f->dim - d);
#else
        memcpy(query, q, f->dim * sizeof(element));
#endif
        memset(query + f->dim, 0, (p->filled - f->dim) * sizeof(operand));
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
    long dim = a->form->dim, filled = ceil_div(dim, STEP) * STEP, padded = ceil_div(dim, PANEL) * PANEL;
    long sums = r.count * padded * sizeof(float), queries = ceil_div(r.count * filled * sizeof(operand), 64) * 64;
    long keys = filled * STRETCH * sizeof(element), values = padded * STRETCH * sizeof(element);
    char *memory = aligned_alloc(64, sums + queries + keys + values);
    struct piece p;
    p.form = a->form;
    p.cache = a->cache;
    p.blocks = a->batch->block_table + r.chunk * a->batch->table_width;
    p.kv_head = r.kv_head;
    p.rows = r.count;
    p.filled = filled;
    p.padded = padded;
    p.shaped = 0;
    p.sums = (vec *)memory;
    p.queries = (operand *)(memory + sums);
    p.key_copy = (element *)(memory + sums + queries);
    p.value_copy = (element *)(memory + sums + queries + keys);
    prepare(&p, a, &r);
    long from = p.lo[0], to = p.hi[r.count - 1]; /* both grow with the position */
    for (long start = from / STRETCH * STRETCH; start < to; start += STRETCH) {
        struct stretch t = {.start = start};
        t.from = most(start, from);
        t.to = least(start + STRETCH, to);
        find_keys(&p, &t);
        find_values(&p, &t);
        attend_stretch(&p, &t);
    }
    release_tiles();
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
