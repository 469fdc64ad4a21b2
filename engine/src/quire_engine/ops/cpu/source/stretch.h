/* A stretch of the context of one sequence and key head: where its keys and values are, as tile.h multiplies them. They
   are used where they lie. What must be mended first is copied: keys if a block is narrower than a group, or D no
   multiple of STEP; values if D is no multiple of LANES, and those that a token shares a pair with (on AMX a block) if
   it is not stored yet. */

#pragma once

#include "cache.h"
#include "tile.h"

#define STRETCH 256 /* tokens, a multiple of PANEL and of blocks */
#define SMALLEST_BLOCK 8
#define BLOCKS (STRETCH / SMALLEST_BLOCK)

/* The tokens of [start, start + STRETCH) of which somebody sees something: [from, to). */
struct stretch {
    long start, from, to;
    long first_block, last_block;         /* of this stretch; last is one too many */
    long blocks[BLOCKS];                  /* the rows of the cache with which they begin */
    const element *keys[STRETCH / LANES]; /* groups of LANES tokens */
    long key_stride;                      /* elements from one pair of dimensions to the next */
    struct run runs[BLOCKS + 1];          /* of pairs of tokens */
    long num_runs, value_stride;          /* elements from one pair of tokens to the next */
};

static void find_blocks(struct stretch *t, const struct form *f, const struct layer_cache *cache, const int32_t *table,
                        long kv_head) {
    long size = cache->block_size, before = t->start / size;
    t->first_block = t->from / size - before;
    t->last_block = ceil_div(t->to, size) - before;
    for (long i = t->first_block; i < t->last_block; i++)
        t->blocks[i] = (table[before + i] * f->kv_heads + kv_head) * size;
}

/* `copy` [STRETCH / LANES, filled / 2, 2 * LANES]; `filled` is D, filled up to whole STEPs. */
static void find_keys(struct stretch *t, const struct form *f, const struct layer_cache *cache, element *copy) {
    long size = cache->block_size, width = least(size, LANES), filled = ceil_div(f->dim, STEP) * STEP;
    int in_place = width == LANES && filled == f->dim;
    t->key_stride = 2 * (in_place ? size : LANES);
    for (long i = t->first_block; i < t->last_block; i++)
        for (long at = 0; at < size; at += width) {
            const element *keys = cache->keys + t->blocks[i] * f->dim + 2 * at;
            long group = (i * size + at) / LANES, lane = (i * size + at) % LANES;
            element *to = copy + group * filled * LANES;
            t->keys[group] = in_place ? keys : to;
            if (in_place)
                continue;
            for (long pair = 0; pair < f->dim / 2; pair++)
                widen_group(to + pair * 2 * LANES, lane, keys + pair * 2 * size, width);
            memset(to + f->dim * LANES, 0, (filled - f->dim) * LANES * sizeof(element));
        }
    long first = t->first_block * size / LANES, last = ceil_div(t->last_block * size, LANES);
    for (long group = 0; group < STRETCH / LANES; group++)
        if (group < first || group >= last) /* seen by nobody: any, its scores are replaced */
            t->keys[group] = t->keys[first];
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

static void add_run(struct stretch *t, const element *values, long at, long pairs) {
    if (pairs)
        t->runs[t->num_runs++] = (struct run){values, at, pairs, NULL};
}

/* `copy` [STRETCH / 2, value_stride] */
static void find_values(struct stretch *t, const struct form *f, const struct layer_cache *cache, element *copy) {
    long size = cache->block_size, dim = value_dim(f), shared = AMX ? size : 2; /* tokens that are there together or not */
    t->value_stride = 2 * ceil_div(dim, LANES) * LANES;
    t->num_runs = 0;
    for (long i = t->first_block; i < t->last_block; i++) {
        long at = most(i * size, (t->from - t->start) / shared * shared), end = least((i + 1) * size, t->to - t->start);
        const element *values = cache->values + (t->blocks[i] + at - i * size) * dim;
        long pairs = ceil_div(end - at, shared) * shared / 2;
        long as_they_are = dim % LANES ? 0 : (end - at) / shared * shared / 2;
        element *to = copy + at / 2 * t->value_stride;
        for (long pair = as_they_are; pair < pairs; pair++)
            copy_values(to + pair * t->value_stride, values + pair * 2 * dim, dim, end - at - 2 * pair);
        add_run(t, values, at, as_they_are);
        add_run(t, to + as_they_are * t->value_stride, at + 2 * as_they_are, pairs - as_they_are);
    }
}
