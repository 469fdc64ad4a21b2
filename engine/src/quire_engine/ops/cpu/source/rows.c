/* What is computed row by row, or number by number: norms and activations. A row's arithmetic depends on its width
   only. */

#include "kernels.h"
#include "parallel.h"

struct norming {
    element *x, *residual, *y; /* [rows, width]; y may be x */
    const float *weight, *bias;
    long width;
    float epsilon;
};

static vec row_of(const struct norming *n, long row, long i) {
    return load_some(n->x + row * n->width + i, n->width - i);
}

/* y = (x - mean) * factor * weight + bias */
static void write_row(const struct norming *n, long row, float mean, float factor) {
    for (long i = 0; i < n->width; i += LANES) {
        long rest = n->width - i;
        vec y = load_some_floats(n->weight + i, rest) * ((row_of(n, row, i) - mean) * factor);
        if (n->bias)
            y += load_some_floats(n->bias + i, rest);
        store_some(n->y + row * n->width + i, y, rest);
    }
}

static void rms_norm_row(const void *job, long row) {
    const struct norming *n = job;
    vec squares = {0};
    for (long i = 0; i < n->width; i += LANES) {
        vec x = row_of(n, row, i);
        squares += x * x;
    }
    write_row(n, row, 0, 1 / sqrtf(sum(squares) / n->width + n->epsilon));
}

static void add_rms_norm_row(const void *job, long row) {
    const struct norming *n = job;
    element *residual = n->residual + row * n->width, *x = n->x + row * n->width;
    for (long i = 0; i < n->width; i += LANES) {
        long rest = n->width - i;
        vec total = load_some(x + i, rest) + load_some(residual + i, rest);
        store_some(residual + i, total, rest);
    }
    struct norming of_total = *n;
    of_total.x = n->residual;
    rms_norm_row(&of_total, row);
}

static void layer_norm_row(const void *job, long row) {
    const struct norming *n = job;
    vec total = {0}, squares = {0};
    for (long i = 0; i < n->width; i += LANES)
        total += row_of(n, row, i);
    float mean = sum(total) / n->width;
    for (long i = 0; i < n->width; i += LANES) {
        vec rest = row_of(n, row, i) - mean;
        if (n->width - i < LANES)
            for (long lane = n->width - i; lane < LANES; lane++)
                rest[lane] = 0;
        squares += rest * rest;
    }
    write_row(n, row, mean, 1 / sqrtf(sum(squares) / n->width + n->epsilon));
}

void rms_norm(element *x, const float *weight, element *y, long rows, long width, float epsilon) {
    struct norming job = {x, NULL, y, weight, NULL, width, epsilon};
    in_parts(rows, 4 * rows * width, rms_norm_row, &job);
}

/* residual += x; x = rms_norm(residual) */
void add_rms_norm(element *x, element *residual, const float *weight, long rows, long width, float epsilon) {
    struct norming job = {x, residual, x, weight, NULL, width, epsilon};
    in_parts(rows, 4 * rows * width, add_rms_norm_row, &job);
}

void layer_norm(element *x, const float *weight, const float *bias, element *y, long rows, long width, float epsilon) {
    struct norming job = {x, NULL, y, weight, bias, width, epsilon};
    in_parts(rows, 4 * rows * width, layer_norm_row, &job);
}

enum activation { SILU, GELU, GELU_TANH, GPT_OSS };

#define LIMIT 7 /* of gpt-oss */
#define STEEPNESS 1.702f

INLINE vec activated(vec x, enum activation kind) {
    if (kind == GPT_OSS)
        return silu_of(choose(x > LIMIT, all(LIMIT), x) * STEEPNESS) / STEEPNESS;
    return kind == SILU ? silu_of(x) : kind == GELU ? gelu_of(x) : gelu_tanh_of(x);
}

/* What a gate is multiplied with. */
INLINE vec beside(vec up, enum activation kind) {
    if (kind == GPT_OSS)
        up = choose(up > LIMIT, all(LIMIT), choose(up < -LIMIT, all(-LIMIT), up)) + 1;
    return up;
}

struct activating {
    const element *x; /* [rows, width], or gate|up [rows, 2 * width] if gated */
    element *y;       /* [rows, width] */
    long width;
    enum activation kind;
};

static void activate_row(const void *job, long row) {
    const struct activating *a = job;
    const element *x = a->x + row * a->width;
    for (long i = 0; i < a->width; i += LANES)
        store_some(a->y + row * a->width + i, activated(load_some(x + i, a->width - i), a->kind), a->width - i);
}

static void gate_row(const void *job, long row) {
    const struct activating *a = job;
    const element *gate = a->x + row * 2 * a->width, *up = gate + a->width;
    for (long i = 0; i < a->width; i += LANES) {
        long rest = a->width - i;
        vec y = activated(load_some(gate + i, rest), a->kind) * beside(load_some(up + i, rest), a->kind);
        store_some(a->y + row * a->width + i, y, rest);
    }
}

void activate(const element *x, element *y, long rows, long width, int kind) {
    struct activating job = {x, y, width, kind};
    in_parts(rows, 8 * rows * width, activate_row, &job);
}

/* x [rows, 2 * width] -> y [rows, width] */
void gate(const element *x, element *y, long rows, long width, int kind) {
    struct activating job = {x, y, width, kind};
    in_parts(rows, 8 * rows * width, gate_row, &job);
}
