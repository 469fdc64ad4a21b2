/* Work in parts, on a few threads of our own. */

#pragma once

/* Too little to be worth waking threads for: below this many multiplications and the like, all parts run here. */
#define WORTH_SHARING (1 << 18)

typedef void part_of(const void *job, long part);

/* Do all `parts` of the job, whose cost in all is `cost`. Who does a part has no influence on its result. */
void in_parts(long parts, double cost, part_of *work, const void *job);

/* From now on so many, the caller among them. More than one: helpers are started, and stay. */
void set_threads(int wanted);

int threads(void);
