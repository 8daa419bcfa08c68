/* arena.h: the only allocator of the core. */
#ifndef BVL_ARENA_H
#define BVL_ARENA_H

#include "core.h"

#define BVL_ALIGNMENT 64

/* Zero-filled memory at a 64-byte boundary, followed by 256 readable bytes so that vector loads
 * may run past the end; NULL when memory is short. bvl_free accepts NULL. */
void *bvl_alloc(size_t bytes);
void bvl_free(void *memory);

/* *out = a * b, or false when that does not fit in a size_t. */
bool bvl_size_mul(size_t a, size_t b, size_t *out);

/* count * size bytes through bvl_alloc; NULL also when the product overflows. */
void *bvl_alloc_array(size_t count, size_t size);

/* `array` of count elements with room for one more, moved and *capacity doubled when it was full; NULL when
 * memory is short, and then the array is as it was. */
void *bvl_grown(void *array, int count, int *capacity, size_t size);

/* Test hook: the n-th allocation from now fails once (1: the next one); 0 switches it off. */
void bvl_alloc_fail_at(long n);

/* Gives memory that nobody uses back to the system, where the C library knows how. */
void bvl_trim(void);

/* Allocations that are live now: a leak check for tests. */
long bvl_alloc_live(void);

#endif
