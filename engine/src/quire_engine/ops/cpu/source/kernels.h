/* What Python calls (library.py), and tape.c once more. Each file says of its own what it does. */

#pragma once

#include "element.h"

struct matrix;
struct form;
struct batch;
struct walk;

void pack(const struct matrix *m, const element *weight);
void linear(const struct matrix *m, const element *x, const float *bias, void *y, long rows, int wide);
long embed(const struct matrix *table, const int64_t *ids, element *y, long rows);

void rms_norm(element *x, const float *weight, element *y, long rows, long width, float epsilon);
void add_rms_norm(element *x, element *residual, const float *weight, long rows, long width, float epsilon);
void layer_norm(element *x, const float *weight, const float *bias, element *y, long rows, long width, float epsilon);
void activate(const element *x, element *y, long rows, long width, int kind);
void gate(const element *x, element *y, long rows, long width, int kind);

void store_kv(const struct form *form, const struct batch *batch, const element *qkv, element *keys, element *values,
              long block_size, element *q);
void attention(const struct form *form, const struct batch *batch, const element *q, element *keys, element *values,
               long block_size, element *out);

void best(const float *x, int64_t *y, long rows, long width);
void begin_walk(struct walk *w);
long end_walk(struct walk *w);
void rule_out(float *x, const int64_t *rows, const uint32_t *allowed, long count, long width, long words);
