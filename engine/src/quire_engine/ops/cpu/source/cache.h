/* What the kernels of attention share: what Python hands over, and the order of numbers within a block of the cache.

   A layer's keys and values are [blocks, kv_heads, block_size * D] each; of a latent form D is smaller for values, which
   are the last numbers of the keys, kept once more in an order of their own. What belongs to one block and head is ordered
   so that vectors need never be turned; groups are those of pairs.h. The last group of a row is shorter if its columns
   are not a multiple of LANES.

       keys     [D / 2][ groups of block_size tokens ]     columns are tokens, pairs are dimensions: q * keys
       values   [block_size / 2][ groups of D dims   ]     columns are dimensions, pairs are tokens: weights * values */

#pragma once

#include "pairs.h"

struct form {
    long heads, kv_heads, dim, causal;
    long window;     /* 0: none */
    long rotary_dim; /* 0: none */
    long latent;     /* a value is the last so many numbers of its key, and is not given; 0: it is */
    float scale /* above 0 */, softcap /* 0: none */, epsilon;
    /* [positions, rotary_dim], [D], [D], [heads], [heads]; may be null */
    const float *rotary, *q_norm, *k_norm, *slopes, *sinks;
};

/* In front of attention: of queries, keys, and values that are given. */
INLINE long given_heads(const struct form *f) { return f->heads + (f->latent ? 1 : 2) * f->kv_heads; }

INLINE long value_dim(const struct form *f) { return f->latent ? f->latent : f->dim; }

struct batch {
    const int64_t *positions, *places;                     /* [tokens] */
    const int32_t *query_start, *context_len, *block_table; /* [chunks + 1], [chunks], [chunks, table_width] */
    long tokens, chunks, table_width;
};

struct layer_cache {
    element *keys, *values;
    long block_size;
};

/* The element of row `row` and column `column`, in a block whose rows are paired and have `columns`. */
INLINE long paired_place(long row, long column, long columns) {
    long first = column / LANES * LANES; /* of its group */
    return row / 2 * 2 * columns + 2 * first + slot(column - first, row % 2, least(LANES, columns - first));
}

INLINE long key_place(long token, long d, long block_size) { return paired_place(d, token, block_size); }

INLINE long value_place(long token, long d, long dim) { return paired_place(token, d, dim); }
