/* amx.h: tiles of up to 32 rows x 32 columns on AMX, bfloat16 and int8.
 *
 *   registers 0..3: C, two by two of 16 x 16   4, 5: A, 16 rows x 16 words   6, 7: W, 16 words x 16 columns
 *
 * A word of an operand row is what dot.h says, so A's tile is 16 rows as they lie in memory, and W's is 16
 * lines of a panel. All tile instructions are behind six names: gcc's own headers give loads no memory
 * operand, so a compiler barrier stands before them, and the configuration is one operand of 64 bytes.
 *
 * BVL_EMULATED builds the same names in C, so that the rest is tested on machines without AMX.
 */
#ifndef BVL_AMX_H
#define BVL_AMX_H

#include "dot.h"

#define AMX_ROWS 32

typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16]; /* of a row of each tile */
    uint8_t rows[16];
} amx_config;

_Static_assert(sizeof(amx_config) == 64, "ldtilecfg reads 64 bytes");

#if defined(BVL_EMULATED)
static _Thread_local struct {
    amx_config config;
    uint8_t tile[8][16][64];
} amx;

BVL_INLINE void tile_configure(const amx_config *config) {
    memset(&amx, 0, sizeof amx);
    amx.config = *config;
}
BVL_INLINE void tile_release(void) {
    memset(&amx, 0, sizeof amx);
}
BVL_INLINE void tile_clear(int t) {
    memset(amx.tile[t], 0, sizeof amx.tile[t]);
}
BVL_INLINE void tile_load(int t, const void *base, int64_t stride) {
    tile_clear(t);
    for (int i = 0; i < amx.config.rows[t]; i++)
        memcpy(amx.tile[t][i], (const uint8_t *)base + i * stride, amx.config.bytes[t]);
}
BVL_INLINE void tile_store(int t, void *base, int64_t stride) {
    for (int i = 0; i < amx.config.rows[t]; i++)
        memcpy((uint8_t *)base + i * stride, amx.tile[t][i], amx.config.bytes[t]);
}
/* One element of C gains the products of one word of A and one of W. */
BVL_INLINE void tile_word(const bvl_precision p, void *c, const uint8_t *a, const uint8_t *w) {
    if (p == BVL_INT8) {
        int32_t sum;
        memcpy(&sum, c, 4);
        for (int i = 0; i < 4; i++) sum += (int8_t)a[i] * w[i];
        memcpy(c, &sum, 4);
        return;
    }
    float sum;
    memcpy(&sum, c, 4);
    for (int i = 0; i < 2; i++) {
        const uint32_t x = (uint32_t)(a[2 * i] | a[2 * i + 1] << 8) << 16,
                       y = (uint32_t)(w[2 * i] | w[2 * i + 1] << 8) << 16;
        float fx, fy;
        memcpy(&fx, &x, 4);
        memcpy(&fy, &y, 4);
        sum += fx * fy;
    }
    memcpy(c, &sum, 4);
}
BVL_INLINE void tile_dot(const bvl_precision p, int c, int a, int w) {
    for (int i = 0; i < amx.config.rows[c]; i++)
        for (int j = 0; j < amx.config.bytes[c] / 4; j++)
            for (int k = 0; k < 16; k++)
                tile_word(p, amx.tile[c][i] + 4 * j, amx.tile[a][i] + 4 * k, amx.tile[w][k] + 4 * j);
}
#else
#include <immintrin.h>
BVL_INLINE void tile_configure(const amx_config *config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*config) : "memory");
}
#define tile_release() _tile_release()
#define tile_clear(t) _tile_zero(t)
#define tile_load(t, base, stride) _tile_loadd(t, base, stride)
#define tile_store(t, base, stride) _tile_stored(t, base, stride)
#define tile_dot(p, c, a, w)         \
    do {                             \
        if ((p) == BVL_INT8)         \
            _tile_dpbsud(c, a, w);   \
        else                         \
            _tile_dpbf16ps(c, a, w); \
    } while (0)
#endif

/* Tiles for products of `mr` rows; a row count of zero leaves the lower tiles out. */
static void amx_configure(int mr) {
    const int upper = BVL_MIN(mr, 16), lower = mr - upper;
    amx_config config = {.palette = 1};
    const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = (uint8_t)rows[t];
        config.bytes[t] = rows[t] ? 64 : 0;
    }
    tile_configure(&config);
}

/* C += A's 16 words at `a` times W's 16 lines at `w`, all four tiles or the upper two. */
#define AMX_STEP(p, mr, a, lda, w)                     \
    do {                                               \
        tile_load(6, w, 128);                          \
        tile_load(4, a, (lda) * 4);                    \
        tile_load(7, (w) + 64, 128);                   \
        tile_dot(p, 0, 4, 6);                          \
        tile_dot(p, 1, 4, 7);                          \
        if ((mr) > 16) {                               \
            tile_load(5, (a) + 16 * (lda), (lda) * 4); \
            tile_dot(p, 2, 5, 6);                      \
            tile_dot(p, 3, 5, 7);                      \
        }                                              \
    } while (0)

/* t[mr, V_NR], rows ldt apart, = A[mr] x panel over all words, a multiple of 16. bfloat16x3: (A + a)(W + w)
 * without a w. */
BVL_INLINE void amx_tile(const bvl_precision p, int mr, float *t, int64_t ldt, const float *a, int64_t lda,
                         const uint8_t *panel, int64_t words) {
    __asm__ volatile("" : : : "memory");
    tile_clear(0);
    tile_clear(1);
    if (mr > 16) {
        tile_clear(2);
        tile_clear(3);
    }
    for (int64_t k = 0; k < words; k += 16) {
        const uint8_t *w = panel + k * 128;
        AMX_STEP(p, mr, a + k, lda, w);
        if (p != BVL_BFLOAT16X3) continue;
        AMX_STEP(p, mr, a + words + k, lda, w);
        AMX_STEP(p, mr, a + k, lda, w + words * 128);
    }
    tile_store(0, t, 4 * ldt);
    tile_store(1, t + 16, 4 * ldt);
    if (mr > 16) {
        tile_store(2, t + 16 * ldt, 4 * ldt);
        tile_store(3, t + 16 * ldt + 16, 4 * ldt);
    }
}

#endif
