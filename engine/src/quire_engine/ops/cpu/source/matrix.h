/* A weight [out, in] as linear.c has packed it. */

#pragma once

#include "element.h"

struct matrix {
    element *panels; /* [ceil(out / PANEL), in, PANEL], filled up */
    long out, in;
};
