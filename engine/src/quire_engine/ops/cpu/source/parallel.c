/* Work in parts, on a few threads of our own.

   Parts are taken from a counter, first come, first served, and nobody waits for a helper that has not taken one: a
   core that is busy with something else delays at most the part which it has. (With OpenMP every thread has to arrive
   at the end of every region; one neighbour on one core then makes all of it thirty times slower.)

   One word says what there is to do, so that a helper which comes late can take nothing that is not there any more:

       bits   63 ..... 40   39 ..... 20   19 ..... 0
              job number    parts         next part

   Helpers spin for a moment, for the next job of a step comes within microseconds, and then sleep. */

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#include "parallel.h"

#define MOST_PARTS (1L << 18) /* leaves room for those who find the counter at its end */
#define SPINS 4000            /* about 50 microseconds */

static _Atomic uint64_t word;
static atomic_long done;           /* parts of this job */
static part_of *work;              /* whoever has a part may read these: they stay until all parts are done */
static const void *work_on;
static long parts_in_all, per_part, takings;

static atomic_flag busy = ATOMIC_FLAG_INIT; /* somebody has a job under way */
static atomic_int is_ahead;                 /* it was begun, and its caller does something else */
static atomic_int team = 1; /* threads that are wanted, the caller among them */
static atomic_int helpers, sleepers;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t bell = PTHREAD_COND_INITIALIZER;

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int is_left(uint64_t seen) { return (seen & 0xFFFFF) < (seen >> 20 & 0xFFFFF); }

/* Do parts until none is left to take. */
static void take_parts(void) {
    while (is_left(atomic_load(&word))) {
        uint64_t mine = atomic_fetch_add(&word, 1);
        if (!is_left(mine))
            return;
        long first = (long)(mine & 0xFFFFF) * per_part, end = first + per_part;
        for (long part = first; part < end && part < parts_in_all; part++)
            work(work_on, part);
        atomic_fetch_add(&done, 1);
    }
}

static void *help(void *unused) {
    for (;;) {
        for (int spin = 0; spin < SPINS; spin++) {
            if (is_left(atomic_load_explicit(&word, memory_order_relaxed))) {
                take_parts();
                spin = 0;
            }
            relax();
        }
        pthread_mutex_lock(&lock);
        atomic_fetch_add(&sleepers, 1);
        while (!is_left(atomic_load(&word)))
            pthread_cond_wait(&bell, &lock);
        atomic_fetch_sub(&sleepers, 1);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

void set_threads(int wanted) {
    atomic_store(&team, wanted);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of the program */
    while (atomic_load(&helpers) < wanted - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, NULL))
            break;
        pthread_detach(thread);
        atomic_fetch_add(&helpers, 1);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

int threads(void) { return atomic_load(&team); }

/* Tell the helpers. `busy` is the caller's. */
static void publish(long parts, part_of *do_part, const void *job) {
    work = do_part, work_on = job, parts_in_all = parts;
    per_part = (parts + MOST_PARTS - 1) / MOST_PARTS;
    takings = (parts + per_part - 1) / per_part;
    uint64_t number = (atomic_load(&word) >> 40) + 1;
    atomic_store(&done, 0);
    atomic_store(&word, number << 40 | (uint64_t)takings << 20);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&bell);
        pthread_mutex_unlock(&lock);
    }
}

static void complete(void) {
    take_parts();
    while (atomic_load(&done) < takings)
        relax();
    atomic_flag_clear(&busy);
}

/* What was begun is in the way of what comes now. */
static void complete_ahead(void) {
    if (atomic_exchange(&is_ahead, 0))
        complete();
}

static void all_here(long parts, part_of *do_part, const void *job) {
    for (long part = 0; part < parts; part++)
        do_part(job, part);
}

void in_parts(long parts, double cost, part_of *do_part, const void *job) {
    if (parts < 2 || cost < WORTH_SHARING || atomic_load(&team) < 2) {
        all_here(parts, do_part, job);
        return;
    }
    complete_ahead();
    if (atomic_flag_test_and_set(&busy)) {
        all_here(parts, do_part, job);
        return;
    }
    publish(parts, do_part, job);
    complete();
}

void begin_parts(long parts, part_of *do_part, const void *job) {
    complete_ahead();
    if (parts < 1 || atomic_load(&team) < 2 || atomic_flag_test_and_set(&busy)) {
        all_here(parts, do_part, job);
        return;
    }
    publish(parts, do_part, job);
    atomic_store(&is_ahead, 1);
}

void finish_parts(const atomic_long *left) {
    if (atomic_load(left))
        complete_ahead();
    while (atomic_load(left))
        relax();
}
