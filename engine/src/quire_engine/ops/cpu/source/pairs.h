/* The order of numbers in whatever is multiplied: weights, keys and values.

   Products of matrices take two steps of the inner dimension k at once, a pair, because vdpbf16ps does. A group is the
   pair of as many columns as a vector has lanes, in the order that suits the instruction set:

       bfloat16           c0 k0, c0 k1, c1 k0, c1 k1, ...      both in the 32 bits of a lane
       float32, float16   c0 k0, c1 k0, ..., c0 k1, c1 k1, ...

   A panel is VECTORS groups side by side. */

#pragma once

#include "element.h"

#define VECTORS 4
#define PANEL (VECTORS * LANES)

#if defined(ELEMENT_bfloat16)
#define INTERLEAVED 1
#else
#define INTERLEAVED 0
#endif

/* Where a group of `lanes` columns has step `k` (0 or 1) of column `lane`. */
INLINE long slot(long lane, long k, long lanes) { return INTERLEAVED ? 2 * lane + k : k * lanes + lane; }

/* Copy a group of `lanes` columns into a group of LANES, from lane `at` on. */
INLINE void widen_group(element *to, long at, const element *from, long lanes) {
    if (INTERLEAVED) {
        memcpy(to + 2 * at, from, 2 * lanes * sizeof(element));
    } else {
        memcpy(to + at, from, lanes * sizeof(element));
        memcpy(to + LANES + at, from + lanes, lanes * sizeof(element));
    }
}
