/* parallel.c: OpenMP teams, the default thread count, and what happens on fork.
 *
 * libgomp hangs in a forked child whose parent had run a parallel region. Before a fork the pool is
 * therefore released (omp_pause_resource_all) unless some other thread is inside a region, where that
 * call is unspecified: the child of such a fork runs every team with one thread.
 *
 * Barriers are our own. libgomp's spin for milliseconds, which on processors shared with another process is
 * time its workers need to arrive at theirs. Here a worker spins for as long as that has paid lately, and
 * then for a share of the time since its last barrier, which bounds what waiting can cost; then it sleeps
 * until it is woken: on processors of its own it hardly ever sleeps, on shared ones soon at once.
 *
 * A worker that was woken is late at the next barrier by what waking takes, some fifty microseconds. If the
 * others slept there they would be late at the one after, and so on for ever: who woke somebody waits longer
 * at its next barrier, for as long as that pays.
 */
#define _GNU_SOURCE /* syscall */
#include "parallel.h"

#include <limits.h>
#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"

enum { LEAST_SPINS = 128, MOST_SPINS = 8192 }; /* some microseconds, some hundred */
enum { WORK_PER_WAIT = 16, LONGEST_WAIT = 100000, LEAST_GRACE = 2000 /* nanoseconds */ };
enum { TRY_AGAIN = 64 };

static atomic_int patience = MOST_SPINS; /* spins before a worker sleeps; races are harmless */

/* Nanoseconds to wait for a worker that was woken, quartered when that was too short; the longest again after
 * TRY_AGAIN of these, for the processors may have become our own. */
static atomic_int grace = LONGEST_WAIT, too_short;

static atomic_int regions; /* parallel regions running now */
static atomic_bool serial; /* set in a child forked while a region ran */

/* Whether the pool of the forking thread was released; handlers of one fork run on one thread. */
static _Thread_local bool released;

static void before_fork(void) {
    released = atomic_load(&regions) == 0 && omp_pause_resource_all(omp_pause_soft) == 0;
}

static void in_child(void) {
    /* a region may have ended, or begun, since before_fork looked: either way the child stays serial */
    if (atomic_exchange(&regions, 0) != 0 || !released) atomic_store(&serial, true);
}

void bvl_parallel_init(void) {
    static atomic_flag done = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&done)) pthread_atfork(before_fork, NULL, in_child);
}

/* The number of threads a variable asks for: 0 where it is not set, -1 where it is none from 1 to 1024.
 * `rest`: what may follow the number. */
static int threads_of(const char *name, const char *rest) {
    const char *text = getenv(name);
    if (!text || !*text) return 0;
    char *end;
    const long value = strtol(text, &end, 10);
    return value >= 1 && value <= 1024 && end != text && strchr(rest, *end) ? (int)value : -1;
}

bvl_status bvl_default_threads(int *threads, bvl_error *err) {
    const int own = threads_of("BEYONDVL_NUM_THREADS", "");
    if (own < 0)
        return bvl_fail(err, BVL_INVALID,
                        "BEYONDVL_NUM_THREADS: found '%s', expected a number from 1 to 1024",
                        getenv("BEYONDVL_NUM_THREADS"));
    const int cpus = bvl_cpu_count(), omp = threads_of("OMP_NUM_THREADS", ", "); /* "4,2": of each depth */
    *threads = own ? own : omp > 0 && omp < cpus ? omp : cpus;
    return BVL_OK;
}

static int64_t nanoseconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* A new thread may be put on its caller's processor and wait there for milliseconds while another one is
 * idle: it goes to the tid-th one after that, and is free to move again. */
static void leave_caller(int cpu, int tid) {
    cpu_set_t own, other;
    if (cpu < 0 || sched_getcpu() != cpu || sched_getaffinity(0, sizeof own, &own) != 0) return;
    CPU_ZERO(&other);
    for (int i = 1, left = tid; i < CPU_SETSIZE && left > 0; i++) {
        const int next = (cpu + i) % CPU_SETSIZE;
        if (CPU_ISSET(next, &own) && --left == 0) CPU_SET(next, &other);
    }
    if (CPU_COUNT(&other) == 1 && sched_setaffinity(0, sizeof other, &other) == 0)
        sched_setaffinity(0, sizeof own, &own);
}

/* When this thread left its last barrier, or began its region. */
static _Thread_local int64_t left_at;

/* Whether it woke somebody there. */
static _Thread_local bool woke;

void bvl_parallel(int nt, bvl_worker worker, void *context) {
    if (nt <= 1 || atomic_load(&serial)) {
        worker(context, (bvl_team){0, 1, NULL});
        return;
    }
    static _Thread_local bool known; /* whether this thread was in a team before */
    bvl_gate gate = {0};
    const int cpu = sched_getcpu();
    known = true;
    atomic_fetch_add(&regions, 1);
#pragma omp parallel num_threads(nt)
    {
        if (!known) leave_caller(cpu, omp_get_thread_num());
        known = true;
        left_at = nanoseconds();
        woke = false;
        worker(context, (bvl_team){omp_get_thread_num(), omp_get_num_threads(), &gate});
    }
    atomic_fetch_sub(&regions, 1);
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Sleeps until *word is no longer `value`, or for no reason. */
static void sleep_on(atomic_int *word, int value) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void wake_all(atomic_int *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static bool passed(bvl_gate *gate, int phase) {
    return atomic_load_explicit(&gate->phase, memory_order_acquire) != phase;
}

static void adapt_grace(bool paid) {
    const int last = atomic_load_explicit(&grace, memory_order_relaxed);
    int next = paid ? BVL_MIN(2 * last, LONGEST_WAIT) : BVL_MAX(last / 4, LEAST_GRACE);
    if (!paid && atomic_fetch_add(&too_short, 1) % TRY_AGAIN == TRY_AGAIN - 1) next = LONGEST_WAIT;
    atomic_store_explicit(&grace, next, memory_order_relaxed);
}

/* Whether the team arrived while this worker span. */
static bool spin(bvl_gate *gate, int phase) {
    const int spins = atomic_load_explicit(&patience, memory_order_relaxed);
    for (int i = 0; i < spins; i++) {
        if (passed(gate, phase)) {
            const int more = spins + spins / 16;
            if (spins < MOST_SPINS) atomic_store_explicit(&patience, more, memory_order_relaxed);
            return true;
        }
        pause_briefly();
    }
    const int64_t now = nanoseconds(), share = BVL_MIN((now - left_at) / WORK_PER_WAIT, LONGEST_WAIT);
    const int64_t until =
        now + (woke ? BVL_MAX(share, atomic_load_explicit(&grace, memory_order_relaxed)) : share);
    do
        for (int i = 0; i < 16; i++) {
            if (passed(gate, phase)) {
                if (woke) adapt_grace(true);
                return true;
            }
            pause_briefly();
        }
    while (nanoseconds() < until);
    if (woke) adapt_grace(false);
    atomic_store_explicit(&patience, BVL_MAX(spins / 4, LEAST_SPINS), memory_order_relaxed);
    return false;
}

void bvl_barrier(bvl_team team) {
    if (team.nt <= 1) return;
    bvl_gate *gate = team.gate;
    const int phase = atomic_load(&gate->phase);
    bool waking = false;
    if (atomic_fetch_add(&gate->arrived, 1) == team.nt - 1) {
        atomic_store(&gate->arrived, 0);
        atomic_store(&gate->phase, phase + 1);
        waking = atomic_load(&gate->asleep) > 0;
        if (waking) wake_all(&gate->phase);
    } else if (!spin(gate, phase)) {
        atomic_fetch_add(&gate->asleep, 1);
        while (atomic_load(&gate->phase) == phase) sleep_on(&gate->phase, phase);
        atomic_fetch_sub(&gate->asleep, 1);
    }
    woke = waking;
    left_at = nanoseconds();
}
