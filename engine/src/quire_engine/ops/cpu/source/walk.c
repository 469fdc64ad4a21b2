/* Many grammars at once: each is shown the token that was chosen, and says what may come next.

   The grammars are another library's (grammars/binding.py), called as tvm-ffi defines it for C: a function takes an array
   of values with their kinds, and returns 0. Python does the same (reference.py), but holds its lock: here other cores walk
   while this one does what is between two forward passes. */

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

struct walk { /* library.py; all arrays but the last two are by slot */
    const struct grammars *grammars;
    void *const *matchers; /* NULL: none */
    int32_t *masks;        /* [.., words] */
    double *seconds;
    const int64_t *slots, *tokens; /* [count]; a token below 0 is none */
    long words, count;
    atomic_long left;    /* parts */
    atomic_long trouble; /* slots of which one does not go on, or took long */
};

#define AT_ONCE 4         /* matchers, by one look at the clock that counts the processor's time, which is a system call */
#define LONG_S 1e-3       /* below, the time that passed will do, and nobody need know it */
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
static int goes_on(const struct walk *w, long slot, long token, int32_t *bits) {
    const struct grammars *g = w->grammars;
    struct value matcher = {.kind = g->kind, .at = w->matchers[slot]};
    if (token >= 0) {
        struct value shown[] = {matcher, {.kind = NUMBER, .number = token}, {.kind = TRUTH}};
        if (ask(g, g->accept, shown, 3) != 1 || ask(g, g->has_ended, &matcher, 1) != 0)
            return 0;
    }
    int64_t shape[] = {1, w->words}, strides[] = {w->words, 1};
    struct tensor mask = {
        .data = bits, .device = 1, .dimensions = 2, .bits = 32, .lanes = 1, .shape = shape, .strides = strides,
    };
    struct value filled[] = {matcher, {.kind = TENSOR, .at = &mask}, {.kind = NUMBER}, {.kind = TRUTH}};
    return ask(g, g->fill, filled, 4) >= 0;
}

static void walk_some(const void *job, long part) {
    struct walk *w = (struct walk *)job;
    double began = now(CLOCK_THREAD_CPUTIME_ID), last = now(CLOCK_MONOTONIC);
    for (long i = part * AT_ONCE; i < least(w->count, (part + 1) * AT_ONCE); i++) {
        long slot = w->slots[i];
        int32_t *bits = w->masks + slot * w->words;
        if (!w->matchers[slot] || !goes_on(w, slot, w->tokens[i], bits)) {
            memset(bits, 0, 4 * w->words);
            w->seconds[slot] = DOES_NOT_GO_ON;
            atomic_fetch_add(&w->trouble, 1);
            continue;
        }
        double passed = now(CLOCK_MONOTONIC) - last;
        last += passed;
        if (passed > LONG_S) {
            double used = now(CLOCK_THREAD_CPUTIME_ID) - began;
            passed = used < passed ? used : passed;
            atomic_fetch_add(&w->trouble, 1);
        }
        w->seconds[slot] = passed;
    }
    atomic_fetch_sub(&w->left, 1);
}

/* Each matcher is shown its token. Its mask gets a bit for each token that may come next, none where it does not go on;
   `seconds` is what it took of the processor. All of it stays until `end_walk`, which returns how much trouble there was. */
void begin_walk(struct walk *w) {
    long parts = ceil_div(w->count, AT_ONCE);
    atomic_store(&w->left, parts);
    atomic_store(&w->trouble, 0);
    begin_parts(parts, walk_some, w);
}

long end_walk(struct walk *w) {
    finish_parts(&w->left);
    return atomic_load(&w->trouble);
}
