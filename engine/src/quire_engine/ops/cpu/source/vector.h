/* Vectors of float32, as wide as the instruction set has them, and the functions which activations need.

   Plain GNU C: compiled for another instruction set, the same lines become its instructions. Everything is computed
   in float32; a number's way through these functions never depends on the lane in which it stands. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ints __attribute__((vector_size(4 * LANES))); /* also masks: -1 where a comparison holds, else 0 */
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }

INLINE vec all(float x) { return x - (vec){0}; } /* x - 0 is x, -0 included; x + 0 is not */

INLINE vec choose(ints mask, vec yes, vec no) { return (vec)((mask & (ints)yes) | (~mask & (ints)no)); }

INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

INLINE vec load_floats(const float *from) {
    vec x;
    memcpy(&x, from, sizeof x);
    return x;
}

/* Of the first `count` lanes; the others are 0. */
INLINE vec load_some_floats(const float *from, long count) {
    if (count >= LANES)
        return load_floats(from);
    vec x = {0};
    memcpy(&x, from, 4 * count);
    return x;
}

INLINE void store_some_floats(float *to, vec x, long count) { memcpy(to, &x, 4 * least(count, LANES)); }

/* Halves are added to each other until one lane is left. */
INLINE float sum(vec x) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)x);
#endif
    float lane[LANES];
    memcpy(lane, &x, sizeof x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] += lane[i + width];
    return lane[0];
}

INLINE float largest(vec x) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)x);
#endif
    float lane[LANES];
    memcpy(lane, &x, sizeof x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}

#define LOG2_E 1.44269504f
#define LN_2 0.69314718f

/* 2^x: the whole part goes into the exponent, Taylor's series does the rest, within -0.5 .. 0.5. Exactly 0 from -126
   down, -inf included; relative error below 3e-7. */
INLINE vec exp2_of(vec x) {
#if LANES == 16
    vec bounded = (vec)_mm512_min_ps((__m512)all(127), (__m512)x); /* in this order it keeps what is no number */
    vec whole = (vec)_mm512_roundscale_ps((__m512)bounded, _MM_FROUND_TO_NEAREST_INT);
#else
    const vec round = all(0x1.8p23f); /* whose last bit counts ones: adding it rounds to a whole number */
    vec bounded = choose(x < all(-126), all(-126), choose(x > all(127), all(127), x));
    vec rounded = bounded + round, whole = rounded - round;
#endif
    vec rest = bounded - whole;
    vec series = all(1.54035304e-4f); /* ln(2)^k / k! */
    series = series * rest + 1.33335581e-3f;
    series = series * rest + 9.61812911e-3f;
    series = series * rest + 5.55041087e-2f;
    series = series * rest + 0.240226507f;
    series = series * rest + LN_2;
    series = series * rest + 1.0f;
#if LANES == 16
    __mmask16 not_zero = _mm512_cmp_ps_mask((__m512)x, (__m512)all(-126), _CMP_NLE_UQ);
    return (vec)_mm512_maskz_scalef_ps(not_zero, (__m512)series, (__m512)whole);
#else
    ints exponent = ((ints)rounded - (ints)round + 127) << 23;
    return (vec)(~(ints)(x <= all(-126)) & (ints)(series * (vec)exponent));
#endif
}

INLINE vec exp_of(vec x) { return exp2_of(x * LOG2_E); }

/* 1 / x, of what is neither 0 nor infinite; relative error below 2e-7. */
INLINE vec inverse_of(vec x) {
#if LANES == 16
    vec about = (vec)_mm512_rcp14_ps((__m512)x);
    return about * (2.0f - x * about); /* a step of Newton's; a division takes five times as long */
#else
    return 1.0f / x;
#endif
}

INLINE vec sigmoid_of(vec x) { return inverse_of(1.0f + exp_of(-x)); }

INLINE vec tanh_of(vec x) { return 1.0f - 2.0f * inverse_of(1.0f + exp_of(2.0f * x)); }

INLINE vec silu_of(vec x) { return x * sigmoid_of(x); }

/* x / 2 * (1 + tanh(y)) is x * sigmoid(2 * y). */
INLINE vec gelu_tanh_of(vec x) { return x * sigmoid_of(1.59576912f * (x + 0.044715f * x * x * x)); }

/* x times the share of a normal distribution below x: Abramowitz and Stegun, 7.1.26, whose error is below 1.5e-7. */
INLINE vec gelu_of(vec x) {
    vec size = choose(x < all(0), -x, x) * 0.70710678f;
    vec t = inverse_of(1.0f + 0.3275911f * size);
    vec series = all(1.061405429f);
    series = series * t - 1.453152027f;
    series = series * t + 1.421413741f;
    series = series * t - 0.284496736f;
    series = series * t + 0.254829592f;
    vec beyond = 0.5f * series * t * exp_of(-size * size);
    return x * choose(x < all(0), beyond, 1.0f - beyond);
}
