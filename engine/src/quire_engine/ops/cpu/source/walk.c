/* Many grammars at once: each is shown the token that was chosen, and says what may come next.

   The grammars are another library's (grammars/binding.py), called as tvm-ffi defines it for C: a function takes an array
   of values with their kinds, and returns 0. Python does the same (reference.py); but between two rows, for which Python
   takes as long as the library, all but one core would wait. */

#include <time.h>

#include "kernels.h"
#include "parallel.h"

enum { NOTHING = 0, NUMBER = 1, TRUTH = 2, TENSOR = 7 }; /* kinds of values */

struct value {
    int32_t kind, zero;
    union {
        int64_t number;
        void *at;
    };
};

struct tensor { /* of DLPack */
    void *data;
    int32_t device, device_number, dimensions;
    uint8_t type, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
};

/* The library's entrance, and the handles of three functions of a matcher. */
struct grammars {
    int (*call)(void *function, struct value *arguments, int32_t count, struct value *result);
    void *accept, *has_ended, *fill;
    long kind; /* of a matcher */
};

struct walk {
    const struct grammars *grammars;
    void *const *matchers;
    const int64_t *tokens;
    int32_t *masks;
    double *seconds;
    long rows, words;
};

#define AT_ONCE 4         /* rows, by one look at the clock that counts the processor's time, which is a system call */
#define LONG_S 1e-3       /* below, the time that passed will do */
#define COST (1 << 13)    /* of a row, against a multiplication: few matchers are not worth another core, whose cache has none of them */
#define DOES_NOT_GO_ON -1 /* in place of the seconds */

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* 1 or 0, as the function answers; -1 if it fails. */
static int ask(const struct grammars *g, void *function, struct value *arguments, int32_t count) {
    struct value answer = {NOTHING};
    return g->call(function, arguments, count, &answer) ? -1 : answer.number != 0;
}

/* Does it go on? If so its mask is filled. */
static int goes_on(const struct walk *w, long row) {
    const struct grammars *g = w->grammars;
    struct value matcher = {.kind = g->kind, .at = w->matchers[row]};
    if (w->tokens[row] >= 0) {
        struct value shown[] = {matcher, {.kind = NUMBER, .number = w->tokens[row]}, {.kind = TRUTH}};
        if (ask(g, g->accept, shown, 3) != 1 || ask(g, g->has_ended, &matcher, 1) != 0)
            return 0;
    }
    int64_t shape[] = {1, w->words}, strides[] = {w->words, 1};
    struct tensor mask = {
        .data = w->masks + row * w->words, .device = 1, .dimensions = 2, .bits = 32, .lanes = 1, .shape = shape, .strides = strides,
    };
    struct value filled[] = {matcher, {.kind = TENSOR, .at = &mask}, {.kind = NUMBER}, {.kind = TRUTH}};
    return ask(g, g->fill, filled, 4) >= 0;
}

static void walk_some(const void *job, long part) {
    const struct walk *w = job;
    double began = now(CLOCK_THREAD_CPUTIME_ID), last = now(CLOCK_MONOTONIC);
    for (long row = part * AT_ONCE; row < least(w->rows, (part + 1) * AT_ONCE); row++) {
        if (!w->matchers[row] || !goes_on(w, row)) {
            memset(w->masks + row * w->words, 0, 4 * w->words);
            w->seconds[row] = DOES_NOT_GO_ON;
            continue;
        }
        double passed = now(CLOCK_MONOTONIC) - last;
        last += passed;
        if (passed > LONG_S) {
            double used = now(CLOCK_THREAD_CPUTIME_ID) - began;
            passed = used < passed ? used : passed;
        }
        w->seconds[row] = passed;
    }
}

/* Matchers [rows], NULL where there is none; tokens [rows], below 0 where there is none to show; masks [rows, words]: a bit
   for each token that may come next, none where the grammar does not go on. seconds [rows] of the processor that each took. */
void walk(const struct grammars *grammars, void *const *matchers, const int64_t *tokens, int32_t *masks, double *seconds,
          long rows, long words) {
    struct walk job = {grammars, matchers, tokens, masks, seconds, rows, words};
    in_parts(ceil_div(rows, AT_ONCE), (double)rows * COST, walk_some, &job);
}
