/* What a grammar does not allow is ruled out of rows of logits. */

#include "kernels.h"
#include "parallel.h"

struct ruling {
    float *x; /* [.., width] */
    const int64_t *rows;
    const uint32_t *allowed; /* [count, words]: a bit for each token, the lowest first */
    long width, words;
};

/* Of the tokens from `first` on, which is a multiple of LANES. */
INLINE ints bits_of(const uint32_t *allowed, long first) {
    ints bit;
    for (int lane = 0; lane < LANES; lane++)
        bit[lane] = 1 << lane;
    return (((ints){0} + (int32_t)(allowed[first / 32] >> first % 32)) & bit) != 0;
}

static void rule_out_row(const void *job, long number) {
    const struct ruling *r = job;
    float *x = r->x + r->rows[number] * r->width;
    const uint32_t *allowed = r->allowed + number * r->words;
    long i = 0;
    for (; i + LANES <= r->width; i += LANES) {
        vec kept = choose(bits_of(allowed, i), load_floats(x + i), all(-INFINITY));
        memcpy(x + i, &kept, sizeof kept);
    }
    if (i < r->width) {
        vec kept = choose(bits_of(allowed, i), load_some_floats(x + i, r->width - i), all(-INFINITY));
        store_some_floats(x + i, kept, r->width - i);
    }
}

/* x[rows[n]] [width] is -inf where allowed[n] has no bit, and else what it was. */
void rule_out(float *x, const int64_t *rows, const uint32_t *allowed, long count, long width, long words) {
    struct ruling job = {x, rows, allowed, width, words};
    in_parts(count, (double)count * width, rule_out_row, &job);
}
