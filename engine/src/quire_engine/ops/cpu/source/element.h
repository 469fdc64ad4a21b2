/* The format of activations and weights: float32, bfloat16 or float16, chosen when this is compiled. */

#pragma once

#include "vector.h"

#if defined(ELEMENT_float32)

typedef float element;

INLINE vec load(const element *from) { return load_floats(from); }
INLINE void store(element *to, vec x) { memcpy(to, &x, sizeof x); }

#elif defined(ELEMENT_bfloat16)

typedef uint16_t element; /* the upper half of a float32 */

/* The upper halves of float32. */
INLINE words widened(halves x) {
#if LANES == 16
    return (words)_mm512_cvtepu16_epi32((__m256i)x) << 16; /* gcc 12 makes two of what is below, and joins them */
#else
    return __builtin_convertvector(x, words) << 16;
#endif
}

INLINE vec load(const element *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    return (vec)widened(x);
}

/* To the nearest, ties to even. What is not a number stays so: rounding up could carry it over to infinity. With the
   instruction, sizes below 2^-126 become 0, as they do in products (vdpbf16ps, AMX). */
INLINE words rounded(vec x) {
#if defined(__AVX512BF16__)
    return widened((halves)_mm512_cvtneps_pbh((__m512)x));
#endif
    words bits = (words)x;
    words nearest = bits + 0x7fff + (bits >> 16 & 1);
    return (words)choose(x == x, (vec)nearest, (vec)(bits | 0x400000)) & 0xffff0000u;
}

INLINE void store(element *to, vec x) {
#if defined(__AVX512BF16__)
    halves upper = (halves)_mm512_cvtneps_pbh((__m512)x);
#else
    halves upper = __builtin_convertvector(rounded(x) >> 16, halves);
#endif
    memcpy(to, &upper, sizeof upper);
}

#elif defined(ELEMENT_float16)

typedef uint16_t element; /* 1 bit of sign, 5 of exponent, 10 of mantissa */

#if LANES == 16

INLINE vec load(const element *from) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from)); }
INLINE void store(element *to, vec x) {
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__F16C__)

INLINE vec load(const element *from) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)); }
INLINE void store(element *to, vec x) {
    _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
}

#else

/* Moved into place, the exponent is 112 too low, which a product mends, for subnormal numbers too; infinity and what is
   no number have all bits of the exponent set, before and after. */
INLINE vec load(const element *from) {
    halves x;
    memcpy(&x, from, sizeof x);
    words bits = __builtin_convertvector(x, words);
    words size = (words)((vec)((bits & 0x7fff) << 13) * 0x1p112f);
    words unbounded = (words)((bits & 0x7c00) == 0x7c00) & 0x7f800000;
    return (vec)((bits & 0x8000) << 16 | size | unbounded);
}

/* Adding a power of two, 2^13 above the last bit that is kept, makes the addition round as it always does. What is too
   large becomes infinite on the way there and back; below 2^-14 the last bit kept is that of 2^-24. */
INLINE void store(element *to, vec x) {
    words bits = (words)x, twice = bits + bits;
    vec size = (vec)(bits & 0x7fffffff) * 0x1p112f * 0x1p-110f;
    words bias = (words)larger((vec)(twice >> 1 & 0x7f800000), (vec)(words)all(0x1p-14f)) + 0x07800000;
    words sum = (words)((vec)bias + size);
    words nearest = (sum >> 13 & 0x7c00) + (sum & 0xfff);
    words unnumbered = (words)(twice > 0xff000000);
    words half = (bits >> 16 & 0x8000) | (unnumbered & 0x7e00) | (~unnumbered & nearest);
    halves narrow = __builtin_convertvector(half, halves);
    memcpy(to, &narrow, sizeof narrow);
}

#endif
#endif

/* The first `count` lanes; the others are 0. */
INLINE vec load_some(const element *from, long count) {
    if (count >= LANES)
        return load(from);
    element some[LANES] = {0};
    memcpy(some, from, count * sizeof(element));
    return load(some);
}

INLINE void store_some(element *to, vec x, long count) {
    if (count >= LANES) {
        store(to, x);
        return;
    }
    element some[LANES];
    store(some, x);
    memcpy(to, some, count * sizeof(element));
}
