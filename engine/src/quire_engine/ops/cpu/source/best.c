/* The best token of each row of logits. */

#include "kernels.h"
#include "parallel.h"

struct choosing {
    const float *x; /* [rows, width] */
    int64_t *y;
    long width;
};

#define AT_ONCE (4 * LANES) /* four maxima, for one would wait for itself */

/* The largest of a row; a NaN if there is one. */
static float top_of(const float *x, long width) {
    vec top[4] = {all(-INFINITY), all(-INFINITY), all(-INFINITY), all(-INFINITY)};
    ints strange = {0};
    long i = 0;
    for (; i + AT_ONCE <= width; i += AT_ONCE)
        for (int v = 0; v < 4; v++) {
            vec some = load_floats(x + i + v * LANES);
            strange |= some != some;
            top[v] = larger(some, top[v]);
        }
    float highest = largest(larger(larger(top[0], top[1]), larger(top[2], top[3])));
    for (int lane = 0; lane < LANES; lane++)
        if (strange[lane])
            return NAN;
    for (; i < width; i++) {
        if (x[i] != x[i])
            return NAN;
        highest = x[i] > highest ? x[i] : highest;
    }
    return highest;
}

static void choose_token(const void *job, long row) {
    const struct choosing *c = job;
    const float *x = c->x + row * c->width;
    float top = top_of(x, c->width);
    long token = top != top || top == INFINITY ? -1 : top == -INFINITY ? -2 : 0;
    if (token == 0)
        while (x[token] != top)
            token++;
    c->y[row] = token;
}

/* x [rows, width] -> y [rows]: the first of the largest; -1: the largest is no finite number; -2: all are -inf. */
void best(const float *x, int64_t *y, long rows, long width) {
    struct choosing job = {x, y, width};
    in_parts(rows, 2.0 * rows * width, choose_token, &job);
}
