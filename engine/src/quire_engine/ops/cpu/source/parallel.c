/* Work in parts, on torch's threads.

   Two pools of threads that wait for work by spinning, on the same cores, would ruin each other. So this library brings
   no OpenMP of its own: it is handed the entry points of the one which torch uses, and is never linked against any.
   Parts are taken from a counter, first come, first served: a core that is busy with something else delays only the
   part that it has. */

#include <stdatomic.h>
#include <stddef.h>

#include "parallel.h"

typedef void parallel_region(void (*work)(void *), void *data, unsigned threads, unsigned flags);

static parallel_region *open_region; /* GOMP_parallel: run work(data) on every thread of the team; 0 threads: all */
static int (*team_size)(void);       /* omp_get_max_threads */

void set_team(parallel_region *region, int (*size)(void)) {
    open_region = region;
    team_size = size;
}

struct crew {
    part_of *work;
    const void *job;
    long parts;
    atomic_long next;
};

static void take_parts(void *data) {
    struct crew *crew = data;
    long part;
    while ((part = atomic_fetch_add_explicit(&crew->next, 1, memory_order_relaxed)) < crew->parts)
        crew->work(crew->job, part);
}

void in_parts(long parts, double cost, part_of *work, const void *job) {
    struct crew crew = {.work = work, .job = job, .parts = parts};
    if (parts > 1 && cost >= WORTH_SHARING && open_region && team_size() > 1)
        open_region(take_parts, &crew, 0, 0);
    else
        take_parts(&crew);
}
