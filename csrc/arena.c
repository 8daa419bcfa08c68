/* arena.c: aligned allocation with a fault hook; also holds bvl_fail, the one way to report. */
#define _GNU_SOURCE
#include "arena.h"

#if defined(__linux__)
#include <malloc.h>
#include <sys/mman.h>
#endif
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HUGE_PAGE = 2 << 20 }; /* weights are read in streams that small pages interrupt */

static atomic_long fail_countdown;
static atomic_long live;

void bvl_alloc_fail_at(long n) {
    atomic_store(&fail_countdown, n);
}

long bvl_alloc_live(void) {
    return atomic_load(&live);
}

bool bvl_size_mul(size_t a, size_t b, size_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}

void *bvl_alloc(size_t bytes) {
    const size_t slack = 256;
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) > 0 &&
        atomic_fetch_sub(&fail_countdown, 1) == 1)
        return NULL;
    if (bytes > SIZE_MAX / 2) return NULL;
    void *memory = NULL;
    const size_t padded = (bytes + slack + BVL_ALIGNMENT - 1) / BVL_ALIGNMENT * BVL_ALIGNMENT;
    const size_t alignment = padded >= HUGE_PAGE ? HUGE_PAGE : BVL_ALIGNMENT;
    if (posix_memalign(&memory, alignment, padded) != 0) return NULL;
#if defined(MADV_HUGEPAGE) /* the whole ones alone: a started one would be memory that nobody uses */
    if (alignment == HUGE_PAGE) madvise(memory, padded / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    memset(memory, 0, padded);
    atomic_fetch_add(&live, 1);
    return memory;
}

void bvl_trim(void) {
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

void *bvl_alloc_array(size_t count, size_t size) {
    size_t bytes;
    return bvl_size_mul(count, size, &bytes) ? bvl_alloc(bytes) : NULL;
}

void *bvl_grown(void *array, int count, int *capacity, size_t size) {
    if (count < *capacity) return array;
    const int wider = *capacity ? 2 * *capacity : 16;
    void *grown = bvl_alloc_array((size_t)wider, size);
    if (!grown) return NULL;
    if (count) memcpy(grown, array, (size_t)count * size);
    bvl_free(array);
    *capacity = wider;
    return grown;
}

void bvl_free(void *memory) {
    if (!memory) return;
    atomic_fetch_sub(&live, 1);
    free(memory);
}

bvl_status bvl_fail(bvl_error *err, bvl_status status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return err->status = status;
}
