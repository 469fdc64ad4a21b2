/* The one kernel of products: a tile of up to ROWS x PANEL sums, added to in registers. Linear layers and both products
   of attention are made of it.

   One factor is made of groups (pairs.h), the other of operands: bfloat16 as it is where vdpbf16ps multiplies it, else
   float32.

                     k, a pair a step ->          columns: VECTORS of them, each with groups of its own
                   +------------------+           [ group | group | group ...     `stride` elements from one
       up to ROWS  |     operands     |    x      [ group | group | group ...      pair's group to the next
                   +------------------+           ...

   Every sum runs over k upwards, one pair after the other, whatever the number of rows: a row's result does not depend
   on its company. */

#pragma once

#include "pairs.h"

#if defined(ELEMENT_bfloat16) && defined(__AMX_BF16__)
#define AMX 1
#define ROWS 16
#define STEP 32 /* elements of the inner dimension */
#else
#define AMX 0
#define STEP 2
#if LANES == 16
#define ROWS 6 /* 24 of 32 registers */
#else
#define ROWS 3 /* 12 of 16 */
#endif
#endif

#if defined(ELEMENT_bfloat16) && defined(__AVX512BF16__)

#define OPERAND_IS_FLOAT 0

typedef element operand;
typedef __m512bh group, both; /* `both`: two operands of a row, in every lane */

INLINE group load_group(const element *from) { return (group)_mm512_loadu_si512(from); }

INLINE both load_both(const operand *from) {
    int pair;
    memcpy(&pair, from, sizeof pair);
    return (both)_mm512_set1_epi32(pair);
}

INLINE vec add_products(vec sum, group g, both x) { return (vec)_mm512_dpbf16_ps((__m512)sum, g, x); }

#else

#define OPERAND_IS_FLOAT 1

typedef float operand;
typedef struct {
    vec first, second;
} group, both;

INLINE group load_group(const element *from) {
#if INTERLEAVED
    words pairs;
    memcpy(&pairs, from, sizeof pairs);
    return (group){(vec)(pairs << 16), (vec)(pairs & 0xffff0000u)};
#else
    return (group){load(from), load(from + LANES)};
#endif
}

INLINE both load_both(const operand *from) { return (both){all(from[0]), all(from[1])}; }

INLINE vec add_products(vec sum, group g, both x) {
    sum += g.first * x.first;
    sum += g.second * x.second;
    return sum;
}

#endif

INLINE void store_operands(operand *to, vec x) {
#if OPERAND_IS_FLOAT
    memcpy(to, &x, sizeof x);
#else
    store(to, x);
#endif
}

INLINE void to_operands(operand *to, const element *from, long count) {
#if OPERAND_IS_FLOAT
    for (long i = 0; i < count; i += LANES)
        store_some_floats(to + i, load_some(from + i, count - i), count - i);
#else
    memcpy(to, from, count * sizeof(element));
#endif
}

/* What add_products will make of x once it has been stored. */
INLINE vec round_to_operand(vec x) {
#if OPERAND_IS_FLOAT
    return x;
#else
    return (vec)rounded(x);
#endif
}

/* Pairs of the inner dimension that lie one after another. */
struct run {
    const element *groups;
    long at, pairs;       /* where it begins in x; how many */
    const element *ahead; /* what will be needed soon; may be null */
};

/* What x is multiplied by. Its runs lie anywhere; in each of them the columns begin at offsets of their own. */
struct factor {
    const struct run *runs;
    long num_runs, stride, offset[VECTORS], ahead; /* `ahead`: elements, from where each run says */
};

/* Ask the memory for it, as far as the second cache: the first one is full of what is used now. */
INLINE void fetch(const element *from, long count) {
#pragma GCC unroll 8
    for (long i = 0; i < count; i += 64 / sizeof(element))
        __builtin_prefetch(from + i, 0, 2);
}

#if AMX

#include "amx.h"

#else

INLINE void shape_tiles(long rows, long pairs) { (void)rows, (void)pairs; }

INLINE void release_tiles(void) {}

INLINE void tile_of(const int rows, const int fresh, vec *sums, long sums_stride, const operand *x, long x_stride,
                    const struct factor *f) {
    vec sum[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            sum[r][v] = fresh ? (vec){0} : sums[r * sums_stride + v];
    for (const struct run *run = f->runs; run < f->runs + f->num_runs; run++) {
        if (run->ahead)
            fetch(run->ahead, f->ahead);
        const element *c0 = run->groups + f->offset[0], *c1 = run->groups + f->offset[1];
        const element *c2 = run->groups + f->offset[2], *c3 = run->groups + f->offset[3];
        for (long pair = 0; pair < run->pairs; pair++) {
            group g0 = load_group(c0), g1 = load_group(c1), g2 = load_group(c2), g3 = load_group(c3);
            c0 += f->stride, c1 += f->stride, c2 += f->stride, c3 += f->stride;
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                both x_r = load_both(x + r * x_stride + run->at + 2 * pair);
                sum[r][0] = add_products(sum[r][0], g0, x_r);
                sum[r][1] = add_products(sum[r][1], g1, x_r);
                sum[r][2] = add_products(sum[r][2], g2, x_r);
                sum[r][3] = add_products(sum[r][3], g3, x_r);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++)
            sums[r * sums_stride + v] = sum[r][v];
}

/* sums [rows, VECTORS] = (`fresh`) or += x times a factor; rows of sums and x are their stride apart. */
static void add_tile(long rows, int fresh, vec *sums, long sums_stride, const operand *x, long x_stride,
                     const struct factor *f) {
    switch (rows) {
#define CASE(n)                                                                                                        \
    case n:                                                                                                            \
        tile_of(n, fresh, sums, sums_stride, x, x_stride, f);                                                          \
        break;
        CASE(1) CASE(2) CASE(3)
#if ROWS == 6
        CASE(4) CASE(5) CASE(6)
#endif
#undef CASE
    }
}

#endif
