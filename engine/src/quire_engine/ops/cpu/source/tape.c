/* The calls of a forward pass, one after another (tape.py). Addresses and widths are as they were recorded; the number
   of rows is that of now, and what attention needs to know of the batch lies where it lay. */

#include "kernels.h"

enum kernel { LINEAR, EMBED, RMS_NORM, ADD_RMS_NORM, LAYER_NORM, ACTIVATE, GATE, STORE_KV, ATTENTION }; /* library.py */

struct call {
    long kernel;
    void *at[6]; /* its addresses, in their order */
    long number[2];
    float epsilon;
};

/* Returns how many calls were made: all of them, unless an id is none (linear.c). */
long replay(const struct call *calls, long count, long rows) {
    for (long i = 0; i < count; i++) {
        const struct call *c = calls + i;
        void *const *at = c->at;
        switch ((enum kernel)c->kernel) {
        case LINEAR:
            linear(at[0], at[1], at[2], at[3], rows, (int)c->number[0]);
            break;
        case EMBED:
            if (embed(at[0], at[1], at[2], rows) < rows)
                return i;
            break;
        case RMS_NORM:
            rms_norm(at[0], at[1], at[2], rows, c->number[0], c->epsilon);
            break;
        case ADD_RMS_NORM:
            add_rms_norm(at[0], at[1], at[2], rows, c->number[0], c->epsilon);
            break;
        case LAYER_NORM:
            layer_norm(at[0], at[1], at[2], at[3], rows, c->number[0], c->epsilon);
            break;
        case ACTIVATE:
            activate(at[0], at[1], rows, c->number[0], (int)c->number[1]);
            break;
        case GATE:
            gate(at[0], at[1], rows, c->number[0], (int)c->number[1]);
            break;
        case STORE_KV:
            store_kv(at[0], at[1], at[2], at[3], at[4], c->number[0], at[5]);
            break;
        case ATTENTION:
            attention(at[0], at[1], at[2], at[3], at[4], c->number[0], at[5]);
            break;
        }
    }
    return count;
}
