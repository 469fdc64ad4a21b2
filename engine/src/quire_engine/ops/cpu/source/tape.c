/* The calls of a forward pass, one after another (tape.py). Addresses and widths are as they were recorded; the number
   of rows is that of now, and what attention needs to know of the batch lies where it lay.

   Only attention looks from one row to another. So many rows go from one attention to the next in blocks: a thread takes
   a block through all the calls between, and what a call writes is still near when the next one reads it. Few rows are
   not divided: there each call shares out its columns. */

#include "cache.h"
#include "kernels.h"
#include "matrix.h"
#include "parallel.h"

#define BLOCK 96 /* rows; as many as linear.c takes at once */

enum kernel { LINEAR, EMBED, RMS_NORM, ADD_RMS_NORM, LAYER_NORM, ACTIVATE, GATE, STORE_KV, ATTENTION }; /* tape.py */

struct call {
    long kernel;
    void *at[6]; /* its addresses, in their order */
    long number[2];
    float epsilon;
};

/* Some rows of those that a call is for. */
struct rows {
    long first, count;
};

INLINE void *from(struct rows r, void *at, long bytes_a_row) { return (char *)at + r.first * bytes_a_row; }

INLINE element *elements(struct rows r, void *at, long width) { return from(r, at, width * sizeof(element)); }

static void store_rows(const struct call *c, struct rows r) {
    const struct form *form = c->at[0];
    struct batch some = *(const struct batch *)c->at[1];
    some.positions += r.first, some.places += r.first, some.tokens = r.count;
    element *qkv = elements(r, c->at[2], given_heads(form) * form->dim);
    store_kv(form, &some, qkv, c->at[3], c->at[4], c->number[0], elements(r, c->at[5], form->heads * form->dim));
}

static void multiply_rows(const struct call *c, struct rows r) {
    const struct matrix *m = c->at[0];
    int wide = (int)c->number[0];
    void *y = from(r, c->at[3], m->out * (wide ? sizeof(float) : sizeof(element)));
    linear(m, elements(r, c->at[1], m->in), c->at[2], y, r.count, wide);
}

/* Returns 0 if an id is none. */
static int make(const struct call *c, struct rows r) {
    void *const *at = c->at;
    long width = c->number[0];
    switch ((enum kernel)c->kernel) {
    case LINEAR:
        multiply_rows(c, r);
        break;
    case EMBED:
        return embed(at[0], at[1], at[2], r.count) == r.count;
    case RMS_NORM:
        rms_norm(elements(r, at[0], width), at[1], elements(r, at[2], width), r.count, width, c->epsilon);
        break;
    case ADD_RMS_NORM:
        add_rms_norm(elements(r, at[0], width), elements(r, at[1], width), at[2], r.count, width, c->epsilon);
        break;
    case LAYER_NORM:
        layer_norm(elements(r, at[0], width), at[1], at[2], elements(r, at[3], width), r.count, width, c->epsilon);
        break;
    case ACTIVATE:
        activate(elements(r, at[0], width), elements(r, at[1], width), r.count, width, (int)c->number[1]);
        break;
    case GATE:
        gate(elements(r, at[0], 2 * width), elements(r, at[1], width), r.count, width, (int)c->number[1]);
        break;
    case STORE_KV:
        store_rows(c, r);
        break;
    case ATTENTION:
        attention(at[0], at[1], at[2], at[3], at[4], width, at[5]);
        break;
    }
    return 1;
}

/* Calls that go together, and how their rows are divided. */
struct stretch_of_calls {
    const struct call *first, *beyond;
    long rows, block;
};

static void take_block(const void *job, long part) {
    const struct stretch_of_calls *s = job;
    struct rows rows = {part * s->block, least(s->block, s->rows - part * s->block)};
    for (const struct call *c = s->first; c < s->beyond; c++)
        make(c, rows);
}

INLINE int by_rows(const struct call *c) { return c->kernel != EMBED && c->kernel != ATTENTION; }

/* Returns how many calls were made: all of them, unless an id is none (linear.c). */
long replay(const struct call *calls, long count, long rows) {
    const struct call *beyond = calls + count;
    long block = rows > BLOCK * threads() ? BLOCK : rows;
    for (const struct call *c = calls; c < beyond; c++) {
        struct stretch_of_calls s = {c, c, rows, block};
        while (block < rows && s.beyond < beyond && by_rows(s.beyond))
            s.beyond++;
        if (s.beyond > c + 1) {
            in_parts(ceil_div(rows, block), WORTH_SHARING, take_block, &s);
            c = s.beyond - 1;
        } else if (!make(c, (struct rows){0, rows})) {
            return c - calls;
        }
    }
    return count;
}
