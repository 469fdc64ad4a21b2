/* Work in parts, on a few threads of our own. */

#pragma once

#include <stdatomic.h>

/* Too little to be worth waking threads for: below this many multiplications and the like, all parts run here. */
#define WORTH_SHARING (1 << 18)

typedef void part_of(const void *job, long part);

/* Do all `parts` of the job, whose cost in all is `cost`. Who does a part has no influence on its result. */
void in_parts(long parts, double cost, part_of *work, const void *job);

/* Leave all parts to the helpers, and go on. They are done by `finish_parts`, which does what is left of them, as does
   whatever needs the helpers first. Without helpers they are done here and now. Each part, when it is done, takes one from
   `left`. */
void begin_parts(long parts, part_of *work, const void *job);
void finish_parts(const atomic_long *left);

/* From now on so many, the caller among them. More than one: helpers are started, and stay. */
void set_threads(int wanted);

int threads(void);
