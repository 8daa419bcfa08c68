/* parallel.c: OpenMP teams, the default thread count, and what happens on fork.
 *
 * libgomp hangs in a forked child whose parent had run a parallel region. Before a fork the pool is
 * therefore released (omp_pause_resource_all) unless some other thread is inside a region, where that
 * call is unspecified: the child of such a fork runs every team with one thread.
 */
#include "parallel.h"

#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "cpu.h"

static atomic_int regions; /* parallel regions running now */
static atomic_bool serial; /* set in a child forked while a region ran */

/* Whether the pool of the forking thread was released; handlers of one fork run on one thread. */
static _Thread_local bool released;

static void before_fork(void) {
    released = atomic_load(&regions) == 0;
    if (released) omp_pause_resource_all(omp_pause_soft);
}

static void in_child(void) {
    /* a region may have ended, or begun, since before_fork looked: either way the child stays serial */
    if (atomic_exchange(&regions, 0) != 0 || !released) atomic_store(&serial, true);
}

void bvl_parallel_init(void) {
    static atomic_flag done = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&done)) pthread_atfork(before_fork, NULL, in_child);
}

static int positive_env(const char *name) {
    const char *text = getenv(name);
    const long value = text ? strtol(text, NULL, 10) : 0;
    return value > 0 && value <= 1024 ? (int)value : 0;
}

int bvl_default_threads(void) {
    const int own = positive_env("BEYONDVL_NUM_THREADS");
    if (own) return own;
    const int cpus = bvl_cpu_count(), omp = positive_env("OMP_NUM_THREADS");
    return omp && omp < cpus ? omp : cpus;
}

void bvl_parallel(int nt, bvl_worker worker, void *context) {
    if (nt <= 1 || atomic_load(&serial)) {
        worker(context, (bvl_team){0, 1});
        return;
    }
    atomic_fetch_add(&regions, 1);
#pragma omp parallel num_threads(nt)
    worker(context, (bvl_team){omp_get_thread_num(), omp_get_num_threads()});
    atomic_fetch_sub(&regions, 1);
}

void bvl_barrier(bvl_team team) {
    if (team.nt > 1) {
#pragma omp barrier
    }
}
