/* Products on AMX, where the CPU has it: a unit of its own that multiplies tiles of 16 x 32 bfloat16, some four times
   faster than vdpbf16ps does. The panels of linear.c are tiles as they are: 16 pairs of a group's columns.

   Up to 16 rows:  one tile of x and four of the panel;    17 to 32: two of each at a time, for half a panel.

       c0 c1 c2 c3  +=  x0  x  panel 0 | 1 | 2 | 3             c0 c1  +=  x0  x  panel 0 | 1, then 2 | 3
                                                               c2 c3  +=  x1

   The unit adds a step of 32 to a sum in an order of its own, the same for every row of every tile. So that a row does
   not depend on its company, all products of linear.c go this way, those of a single row too. */

#pragma once

#include "tile.h"

#define TILE 16      /* rows, and columns, which are LANES */
#define TILE_STEP 32 /* elements of the inner dimension */

struct shape {
    uint8_t palette, start, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Registers 0 to 3 are sums, 4 and 5 of x, 6 and 7 of the panel. Whoever shapes them releases them in the end. */
static void shape_tiles(long rows) {
    long upper = least(rows, TILE), lower = rows - upper;
    struct shape shape = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        shape.row_bytes[i] = 64;
        shape.rows[i] = i < 4 ? (lower && i > 1 ? lower : upper) : i == 4 ? upper : i == 5 && lower ? lower : TILE;
    }
    _tile_loadconfig(&shape);
}

/* sums [rows, VECTORS] = x [rows, steps * TILE_STEP] times a panel, in tiles that were shaped for as many rows. */
static void multiply_tiles(long rows, vec *sums, const element *x, long x_stride, const element *panel, long steps) {
    const long across = 2 * PANEL * sizeof(element), step = TILE * 2 * PANEL, group = 2 * LANES;
    const long sums_stride = VECTORS * sizeof(vec), x_bytes = x_stride * sizeof(element);
    if (rows <= TILE) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long i = 0; i < steps; i++, x += TILE_STEP, panel += step) {
            _tile_loadd(4, x, x_bytes);
            _tile_loadd(6, panel, across);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, panel + group, across);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(6, panel + 2 * group, across);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(7, panel + 3 * group, across);
            _tile_dpbf16ps(3, 4, 7);
        }
        _tile_stored(0, sums, sums_stride);
        _tile_stored(1, sums + 1, sums_stride);
        _tile_stored(2, sums + 2, sums_stride);
        _tile_stored(3, sums + 3, sums_stride);
        return;
    }
    for (int half = 0; half < VECTORS; half += 2) {
        const element *upper = x, *lower = x + TILE * x_stride, *columns = panel + half * group;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (long i = 0; i < steps; i++, upper += TILE_STEP, lower += TILE_STEP, columns += step) {
            _tile_loadd(4, upper, x_bytes);
            _tile_loadd(6, columns, across);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, columns + group, across);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, lower, x_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, sums + half, sums_stride);
        _tile_stored(1, sums + half + 1, sums_stride);
        _tile_stored(2, sums + TILE * VECTORS + half, sums_stride);
        _tile_stored(3, sums + TILE * VECTORS + half + 1, sums_stride);
    }
}
