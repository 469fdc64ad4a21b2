/* From q|k|v, or q|k of a latent form, to queries and the cache: norms of heads, rotation, and keys and values to their places. */

#include "cache.h"
#include "kernels.h"
#include "parallel.h"

#define TOKENS_PER_PART 4

struct storing {
    const struct form *form;
    const struct batch *batch;
    const element *qkv; /* [tokens, given_heads, D] */
    struct layer_cache cache;
    element *q; /* [tokens, heads, D] */
};

static void read_head(float *x, const element *from, long dim) {
    for (long i = 0; i < dim; i += LANES)
        store_some_floats(x + i, load_some(from + i, dim - i), dim - i);
}

static void norm_head(float *x, const float *weight, long dim, float epsilon) {
    vec squares = {0};
    for (long i = 0; i < dim; i += LANES) {
        vec some = load_some_floats(x + i, dim - i);
        squares += some * some;
    }
    float factor = 1 / sqrtf(sum(squares) / dim + epsilon);
    for (long i = 0; i < dim; i++)
        x[i] = weight[i] * (x[i] * factor);
}

/* Pairs are (i, i + rotary_dim / 2); the row of the table has the cosines, then the sines. */
static void rotate_head(float *x, const float *row, long rotary_dim) {
    long half = rotary_dim / 2;
    for (long i = 0; i < half; i++) {
        float low = x[i], high = x[i + half];
        x[i] = low * row[i] - high * row[i + half];
        x[i + half] = high * row[i] + low * row[i + half];
    }
}

/* Write x as elements, D in all. */
static void round_head(element *to, const float *x, long dim) {
    for (long i = 0; i < dim; i += LANES)
        store_some(to + i, load_some_floats(x + i, dim - i), dim - i);
}

/* A token's D numbers of a key, each pair of them to a group. */
static void store_key(element *keys, const element *key, long token, long dim, long block_size) {
    for (long d = 0; d < dim; d += 2) {
        element *pair = keys + key_place(token, d, block_size);
        pair[0] = key[d];
        pair[slot(0, 1, least(LANES, block_size))] = key[d + 1];
    }
}

/* A token's D numbers of a value, between those of its neighbour, which another thread may be writing. */
static void store_value(element *values, const element *value, long token, long dim) {
    long d = 0;
#if LANES == 16 && INTERLEAVED
    for (; d + LANES <= dim; d += LANES) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(value + d)));
        element *group = values + value_place(token & ~1L, d, dim);
        _mm512_mask_storeu_epi16(group, 0x55555555u << token % 2, _mm512_slli_epi32(wide, token % 2 * 16));
    }
#endif
    for (; d < dim; d++)
        values[value_place(token, d, dim)] = value[d];
}

static void store_token(const struct storing *s, long token) {
    const struct form *f = s->form;
    long dim = f->dim, size = s->cache.block_size, place = s->batch->places[token];
    const float *angles = f->rotary_dim ? f->rotary + s->batch->positions[token] * f->rotary_dim : NULL;
    const element *from = s->qkv + token * given_heads(f) * dim;
    element *q = s->q + token * f->heads * dim;
    float x[dim];
    element key[dim];
    for (long head = 0; head < f->heads + f->kv_heads; head++, from += dim) {
        const float *norm = head < f->heads ? f->q_norm : f->k_norm;
        read_head(x, from, dim);
        if (norm)
            norm_head(x, norm, dim, f->epsilon);
        if (angles)
            rotate_head(x, angles, f->rotary_dim);
        if (head < f->heads) {
            round_head(q + head * dim, x, dim);
            continue;
        }
        element *keys = s->cache.keys + (place / size * f->kv_heads + head - f->heads) * size * dim;
        round_head(key, x, dim);
        store_key(keys, key, place % size, dim, size);
        if (f->latent) {
            element *values = s->cache.values + (place / size * f->kv_heads + head - f->heads) * size * f->latent;
            store_value(values, key + dim - f->latent, place % size, f->latent);
        }
    }
    if (f->latent)
        return;
    for (long head = 0; head < f->kv_heads; head++, from += dim) {
        element *values = s->cache.values + (place / size * f->kv_heads + head) * size * dim;
        store_value(values, from, place % size, dim);
    }
}

static void store_part(const void *job, long part) {
    const struct storing *s = job;
    long last = least((part + 1) * TOKENS_PER_PART, s->batch->tokens);
    for (long token = part * TOKENS_PER_PART; token < last; token++)
        store_token(s, token);
}

void store_kv(const struct form *form, const struct batch *batch, const element *qkv, element *keys, element *values,
              long block_size, element *q) {
    struct storing job = {form, batch, qkv, {keys, values, block_size}, q};
    double cost = 8.0 * batch->tokens * given_heads(form) * form->dim;
    in_parts(ceil_div(batch->tokens, TOKENS_PER_PART), cost, store_part, &job);
}
