/* Linear layers, and rows of a table in the same layout (a model may use one matrix as both).

   A weight [out, in] is packed into panels of PANEL outputs, the last one filled up with zeros; `in` is a multiple of
   STEP, made so by zeros if it was not:

       panel 0 (outputs 0 .. PANEL - 1)      panel 1 ...
       [ k 0,1: VECTORS groups ][ k 2,3: VECTORS groups ] ...           group: pairs.h

   A panel is read from its start to its end, once for a block of rows: for one row the speed is that of the memory, for
   many the panel stays in the cache near the core, as the rows do. */

#include <stdlib.h>
#include <sys/mman.h>

#include "kernels.h"
#include "matrix.h"
#include "parallel.h"
#include "tile.h"

#define ROWS_AT_ONCE (AMX ? 2 * ROWS : ROWS)
#define ROW_BLOCK 96 /* a multiple of ROWS_AT_ONCE, whatever it is */

INLINE long filled_up(long in) { return ceil_div(in, STEP) * STEP; }

INLINE element *panel_at(const struct matrix *m, long panel) { return m->panels + panel * filled_up(m->in) * PANEL; }

/* Elements from the start of a panel to step k of a column. */
INLINE long place(long column, long k) {
    return (k / 2 * VECTORS + column / LANES) * 2 * LANES + slot(column % LANES, k % 2, LANES);
}

long packed_size(long out, long in) { return ceil_div(out, PANEL) * filled_up(in) * PANEL * sizeof(element); }

struct packing {
    const struct matrix *matrix;
    const element *weight;
};

static void pack_panel(const void *job, long panel) {
    const struct packing *p = job;
    long in = p->matrix->in, columns = least(PANEL, p->matrix->out - panel * PANEL);
    const element *weight = p->weight + panel * PANEL * in;
    element *to = panel_at(p->matrix, panel);
    if (columns < PANEL || in % STEP)
        memset(to, 0, filled_up(in) * PANEL * sizeof(element));
    for (long k = 0; k < in; k += 16) /* few steps at a time: what is written stays near until its lines are full */
        for (long c = 0; c < columns; c++)
            for (long i = k; i < least(k + 16, in); i++)
                to[place(c, i)] = weight[c * in + i];
}

/* weight [out, in] -> m->panels, of packed_size bytes. */
void pack(const struct matrix *m, const element *weight) {
    long size = packed_size(m->out, m->in), page = 1 << 21;
    uintptr_t from = ((uintptr_t)m->panels + page - 1) & -page, to = ((uintptr_t)m->panels + size) & -page;
    if (from < to)
        madvise((void *)from, to - from, MADV_HUGEPAGE); /* fewer walks through page tables; if it fails, so be it */
    struct packing job = {m, weight};
    in_parts(ceil_div(m->out, PANEL), (double)m->out * m->in, pack_panel, &job);
}

struct embedding {
    const struct matrix *table;
    const int64_t *ids;
    element *y;
};

static void embed_row(const void *job, long row) {
    const struct embedding *e = job;
    const element *panel = panel_at(e->table, e->ids[row] / PANEL);
    for (long k = 0; k < e->table->in; k++)
        e->y[row * e->table->in + k] = panel[place(e->ids[row] % PANEL, k)];
}

/* ids [rows] of a table -> y [rows, in]. Returns how many ids come before one that is none; unless that is all of them,
   nothing is written. */
long embed(const struct matrix *table, const int64_t *ids, element *y, long rows) {
    for (long row = 0; row < rows; row++)
        if (ids[row] < 0 || ids[row] >= table->out)
            return row;
    struct embedding job = {table, ids, y};
    in_parts(rows, 16 * rows * table->in, embed_row, &job);
    return rows;
}

struct product {
    const struct matrix *matrix;
    const operand *x;
    const float *bias; /* may be null */
    void *y;
    long x_stride, rows, panels_per_part;
    int wide;
};

static void store_tile(const struct product *p, const vec *sums, long row, long panel) {
    long out = p->matrix->out;
    for (long v = 0, column = panel * PANEL; v < VECTORS && column < out; v++, column += LANES) {
        vec y = sums[v];
        if (p->bias)
            y += load_some_floats(p->bias + column, out - column);
        if (p->wide)
            store_some_floats((float *)p->y + row * out + column, y, out - column);
        else
            store_some((element *)p->y + row * out + column, y, out - column);
    }
}

/* sums [rows, VECTORS] = x [rows, in] times a panel. */
static void multiply_panel(const struct product *p, long rows, vec *sums, const operand *x, const element *panel) {
    long in = filled_up(p->matrix->in);
#if AMX
    if (rows > ROWS) {
        multiply_twice(sums, x, p->x_stride, panel, in / STEP);
        return;
    }
#endif
    struct run run = {panel, 0, in / 2, NULL};
    struct factor f = {&run, 1, 2 * PANEL, {0, 2 * LANES, 4 * LANES, 6 * LANES}, 0};
    add_tile(rows, 1, sums, VECTORS, x, p->x_stride, &f);
}

/* A block of rows times some panels. */
static void multiply(const void *job, long part) {
    const struct product *p = job;
    long panels = ceil_div(p->matrix->out, PANEL), parts_across = ceil_div(panels, p->panels_per_part);
    long first_panel = part % parts_across * p->panels_per_part, first_row = part / parts_across * ROW_BLOCK;
    long last_panel = least(first_panel + p->panels_per_part, panels), last_row = least(first_row + ROW_BLOCK, p->rows);
    long shaped = 0;
    for (long panel = first_panel; panel < last_panel; panel++) {
        for (long row = first_row; row < last_row; row += ROWS_AT_ONCE) {
            long rows = least(ROWS_AT_ONCE, last_row - row);
            if (rows != shaped)
                shape_tiles(shaped = rows, STEP / 2);
            vec sums[ROWS_AT_ONCE * VECTORS];
            multiply_panel(p, rows, sums, p->x + row * p->x_stride, panel_at(p->matrix, panel));
            for (long r = 0; r < rows; r++)
                store_tile(p, sums + r * VECTORS, row + r, panel);
        }
    }
    release_tiles();
}

struct widening {
    const element *x;
    operand *to;
    long width, stride;
};

static void widen_row(const void *job, long row) {
    const struct widening *w = job;
    operand *to = w->to + row * w->stride;
    memset(to + w->stride - STEP, 0, STEP * sizeof(operand));
    to_operands(to, w->x + row * w->width, w->width);
}

/* x [rows, in] -> y [rows, out], of float32 if `wide`; the bias [out] may be null. */
void linear(const struct matrix *m, const element *x, const float *bias, void *y, long rows, int wide) {
    double cost = (double)rows * m->in * m->out;
    long panels = ceil_div(m->out, PANEL);
    struct product job = {m, (const operand *)x, bias, y, m->in, rows, most(1, panels / 16), wide};
    operand *operands = NULL;
    if (sizeof(operand) != sizeof(element) || m->in % STEP) {
        job.x_stride = filled_up(m->in);
        job.x = operands = malloc(rows * job.x_stride * sizeof(operand));
        struct widening widening = {x, operands, m->in, job.x_stride};
        in_parts(rows, rows * m->in, widen_row, &widening);
    }
    in_parts(ceil_div(rows, ROW_BLOCK) * ceil_div(panels, job.panels_per_part), cost, multiply, &job);
    free(operands);
}
