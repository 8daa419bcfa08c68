/* core.h: what every file shares: status and error, the array view, shape letters.
 *
 * Shape letters, the same in every file:
 *   B items in the batch   T tokens of one item   L padded text length   D hidden size
 *   H heads                hd head size           C channels             M, N, K of a product
 * A product is C[M, N] = A[M, K] x W[N, K]^T: weights keep the checkpoint's [out, in] order.
 */
#ifndef BVL_CORE_H
#define BVL_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum {
    BVL_OK = 0,
    BVL_NO_MEMORY,
    BVL_INVALID,   /* the caller's value is wrong: ValueError */
    BVL_CANCELLED, /* a signal handler raised while a program ran */
    BVL_MISSING    /* an optional part (OpenBLAS, stb_image) is not there: RuntimeError */
} bvl_status;

typedef struct {
    bvl_status status;
    char message[480];
} bvl_error;

#define BVL_PRINTF(a, b) __attribute__((format(printf, a, b)))
#define BVL_INLINE static inline __attribute__((always_inline, unused))
#define BVL_NOINLINE __attribute__((noinline))
#define BVL_UNUSED __attribute__((unused))

/* Fills err where the failure happened and returns its status. */
bvl_status bvl_fail(bvl_error *err, bvl_status status, const char *format, ...) BVL_PRINTF(3, 4);

#define BVL_MAX_RANK 4

/* A borrowed C-contiguous float32 array. */
typedef struct {
    const float *data; /* NULL: the optional array was not given */
    int rank;
    int64_t shape[BVL_MAX_RANK];
} bvl_array;

#define BVL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define BVL_MAX(a, b) ((a) > (b) ? (a) : (b))

BVL_INLINE int64_t bvl_round_up(int64_t x, int64_t multiple) {
    return (x + multiple - 1) / multiple * multiple;
}

/* Floats between two rows of `cols`: whole cache lines, an odd number of them, so that neighbouring rows
 * do not fall into the same sets of a cache. */
BVL_INLINE int64_t bvl_padded(int64_t cols) {
    const int64_t lines = bvl_round_up(cols, 16) / 16;
    return 16 * (lines | 1);
}

/* Share of tid when `total` units are split over nt workers: [*begin, *end). */
BVL_INLINE void bvl_share(int64_t total, int tid, int nt, int64_t *begin, int64_t *end) {
    *begin = total * tid / nt;
    *end = total * (tid + 1) / nt;
}

#endif
