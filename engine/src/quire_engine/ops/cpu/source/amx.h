/* Products on AMX, where the CPU has it: a unit of its own that multiplies tiles of 16 x 32 bfloat16, some four times
   faster than vdpbf16ps does. Panels of linear.c and blocks of the cache are tiles as they are: up to 16 pairs of a
   group's columns.

   Up to 16 rows:  one tile of x and four of the factor;    17 to 32: two of each at a time, for half a panel.

       c0 c1 c2 c3  +=  x0  x  group 0 | 1 | 2 | 3              c0 c1  +=  x0  x  group 0 | 1, then 2 | 3
                                                                c2 c3  +=  x1

   The unit adds a step to a sum in an order of its own, the same for every row of every tile; a step of zeros changes
   nothing. So that a row does not depend on its company, all products go this way, those of a single row too. */

#pragma once

struct shape {
    uint8_t palette, start, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Registers 0 to 3 are sums; 4 and 6 are a step of x and of the factor; 5 and 7 are too, of `pairs` if steps are that
   short, of the rows from ROWS on if there are so many. Whoever shapes them releases them in the end. */
static void shape_tiles(long rows, long pairs) {
    long upper = least(rows, ROWS), lower = rows > ROWS ? rows - ROWS : upper;
    struct shape shape = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, 64, 4 * pairs, 64, 64},
        .rows = {upper, upper, lower, lower, upper, lower, STEP / 2, pairs},
    };
    __asm__ volatile("ldtilecfg %0" ::"m"(shape)); /* gcc 12 takes _tile_loadconfig to read 8 bytes of it */
}

static void release_tiles(void) { _tile_release(); }

/* What was computed is in memory now: gcc 12 does not know that _tile_loadd reads there. */
INLINE void write_down(void) { __asm__ volatile("" ::: "memory"); }

/* sums [rows, VECTORS] = (`fresh`) or += x times a factor, for up to ROWS rows, in tiles that were shaped for them. A
   run is one short step, or some whole ones. */
static void add_tile(long rows, int fresh, vec *sums, long sums_stride, const element *x, long x_stride,
                     const struct factor *f) {
    const long sums_bytes = sums_stride * sizeof(vec), x_bytes = x_stride * sizeof(element);
    const long bytes = f->stride * sizeof(element);
    write_down();
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, sums_bytes);
        _tile_loadd(1, sums + 1, sums_bytes);
        _tile_loadd(2, sums + 2, sums_bytes);
        _tile_loadd(3, sums + 3, sums_bytes);
    }
#define ADD_STEP(of_x, of_factor)                                                                                      \
    _tile_loadd(of_x, x + run->at + 2 * pair, x_bytes);                                                                \
    _tile_loadd(of_factor, groups + f->offset[0], bytes);                                                              \
    _tile_dpbf16ps(0, of_x, of_factor);                                                                                \
    _tile_loadd(of_factor, groups + f->offset[1], bytes);                                                              \
    _tile_dpbf16ps(1, of_x, of_factor);                                                                                \
    _tile_loadd(of_factor, groups + f->offset[2], bytes);                                                              \
    _tile_dpbf16ps(2, of_x, of_factor);                                                                                \
    _tile_loadd(of_factor, groups + f->offset[3], bytes);                                                              \
    _tile_dpbf16ps(3, of_x, of_factor)
    for (const struct run *run = f->runs; run < f->runs + f->num_runs; run++) {
        if (run->ahead)
            fetch(run->ahead, f->ahead);
        for (long pair = 0; pair < run->pairs; pair += STEP / 2) {
            const element *groups = run->groups + pair * f->stride;
            if (run->pairs < STEP / 2) {
                ADD_STEP(5, 7);
            } else {
                ADD_STEP(4, 6);
            }
        }
    }
#undef ADD_STEP
    _tile_stored(0, sums, sums_bytes);
    _tile_stored(1, sums + 1, sums_bytes);
    _tile_stored(2, sums + 2, sums_bytes);
    _tile_stored(3, sums + 3, sums_bytes);
}

/* The same for 17 to 32 rows of fresh sums and a panel, of `steps`. */
static void multiply_twice(vec *sums, const element *x, long x_stride, const element *panel, long steps) {
    const long bytes = 2 * PANEL * sizeof(element), x_bytes = x_stride * sizeof(element);
    const long sums_bytes = VECTORS * sizeof(vec), group = 2 * LANES;
    write_down();
    for (int half = 0; half < VECTORS; half += 2) {
        const element *upper = x, *lower = x + ROWS * x_stride, *columns = panel + half * group;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long i = 0; i < steps; i++, upper += STEP, lower += STEP, columns += STEP * PANEL) {
            _tile_loadd(4, upper, x_bytes);
            _tile_loadd(6, columns, bytes);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, columns + group, bytes);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, lower, x_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums + half, sums_bytes);
        _tile_stored(1, sums + half + 1, sums_bytes);
        _tile_stored(2, sums + ROWS * VECTORS + half, sums_bytes);
        _tile_stored(3, sums + ROWS * VECTORS + half + 1, sums_bytes);
    }
}
