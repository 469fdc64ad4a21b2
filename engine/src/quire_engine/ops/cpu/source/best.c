/* The best token of each row of logits. */

#include "kernels.h"
#include "parallel.h"

struct choosing {
    const float *x; /* [rows, width] */
    int64_t *y;
    long width;
};

#define CHAINS 4 /* of maxima, for one would wait for itself */
#define AT_ONCE (CHAINS * LANES)

/* The first of the largest of a row, and where it is; a NaN, if there is one, is larger than all. */
static float top_of(const float *x, long width, long *where) {
    vec top[CHAINS];
    ints at[CHAINS], now[CHAINS], strange = {0};
    for (int c = 0; c < CHAINS; c++) {
        top[c] = all(-INFINITY);
        for (int lane = 0; lane < LANES; lane++)
            at[c][lane] = now[c][lane] = c * LANES + lane;
    }
    long i = 0;
    for (; i + AT_ONCE <= width; i += AT_ONCE)
        for (int c = 0; c < CHAINS; c++) {
            vec some = load_floats(x + i + c * LANES);
            ints larger = some > top[c];
            strange |= some != some;
            top[c] = choose(larger, some, top[c]);
            at[c] = (larger & now[c]) | (~larger & at[c]);
            now[c] += AT_ONCE;
        }
    float highest = -INFINITY;
    *where = 0;
    for (int c = 0; c < CHAINS; c++)
        for (int lane = 0; lane < LANES; lane++) {
            if (strange[lane])
                return NAN;
            if (top[c][lane] > highest || (top[c][lane] == highest && at[c][lane] < *where))
                highest = top[c][lane], *where = at[c][lane];
        }
    for (; i < width; i++) {
        if (x[i] != x[i])
            return NAN;
        if (x[i] > highest)
            highest = x[i], *where = i;
    }
    return highest;
}

static void choose_token(const void *job, long row) {
    const struct choosing *c = job;
    long token;
    float top = top_of(c->x + row * c->width, c->width, &token);
    c->y[row] = top != top || top == INFINITY ? -1 : top == -INFINITY ? -2 : token;
}

/* x [rows, width] -> y [rows]: the first of the largest; -1: the largest is no finite number; -2: all are -inf. */
void best(const float *x, int64_t *y, long rows, long width) {
    struct choosing job = {x, y, width};
    in_parts(rows, 2.0 * rows * width, choose_token, &job);
}
