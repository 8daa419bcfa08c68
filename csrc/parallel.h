/* parallel.h: teams of threads. The only place that knows a threading library. */
#ifndef BVL_PARALLEL_H
#define BVL_PARALLEL_H

#include <stdatomic.h>

#include "core.h"

/* Where a team meets. */
typedef struct {
    atomic_int arrived, phase, asleep;
} bvl_gate;

/* A worker's place in its team; barriers concern the team alone. */
typedef struct {
    int tid, nt;
    bvl_gate *gate; /* NULL for a team of one */
} bvl_team;

typedef void (*bvl_worker)(void *context, bvl_team team);

/* Runs worker on a team of at most nt threads, the caller being tid 0; returns when all are done. */
void bvl_parallel(int nt, bvl_worker worker, void *context);

/* Waits for the whole team; nothing for a team of one. */
void bvl_barrier(bvl_team team);

/* Threads used when the caller names no number: BEYONDVL_NUM_THREADS, which is refused where it is none, else
 * OMP_NUM_THREADS, else the processors this process may use. */
bvl_status bvl_default_threads(int *threads, bvl_error *err);

/* Installs the fork handlers; called once at import, starts no thread. */
void bvl_parallel_init(void);

#endif
