/* amx.h: products on AMX (all but float32) in tiles of up to 32 rows x 32 columns.
 *
 *   registers 0..3: C, two by two of 16 x 16   4, 5: A, 16 rows x 16 words   6, 7: W, 16 words x 16 columns
 *
 * A word of an operand row is what dot.h says, so A's tile is 16 rows as they lie in memory, and W's is 16
 * lines of a panel. A step of 16 words reads 4 KB and takes 64 cycles, more than the second cache gives, so
 * a group of tiles takes 128 words of a panel at a time, which stay in the first; its sums lie in memory
 * meanwhile; a lone tile takes the panel whole. (Stores of tiles that miss the first cache take 20 cycles a
 * row, so A and W must not both stream from the second.)
 *
 * All tile instructions are behind six names: gcc's own headers give loads no memory operand, so a compiler
 * barrier stands before them, and the configuration is one operand of 64 bytes.
 *
 * BVL_EMULATED builds the same names in C, so that the rest is tested on machines without AMX.
 */
#ifndef BVL_AMX_H
#define BVL_AMX_H

#include "epilogue.h"

enum {
    AMX_ROWS = 32,
    AMX_GROUP = 4,   /* tiles of rows that share the words of a panel */
    AMX_WORDS = 128, /* of a panel at a time: 16 KB */
    AMX_STEP_BYTES = 2048,
    AMX_FETCH_TILES = 2, /* with so many or more the next panel is fetched meanwhile; fewer wait for memory */
    AMX_BLOCK_BYTES = 1024 * 1024 /* of A, read again for every panel: half of the second cache */
};

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
        tile_dot(p, 0, 4, 6);                          \
        tile_load(7, (w) + 64, 128);                   \
        tile_dot(p, 1, 4, 7);                          \
        if ((mr) > 16) {                               \
            tile_load(5, (a) + 16 * (lda), (lda) * 4); \
            tile_dot(p, 2, 5, 6);                      \
            tile_dot(p, 3, 5, 7);                      \
        }                                              \
    } while (0)

/* t[mr, V_NR], rows ldt apart, += A[mr] x panel over `count` words, a multiple of 16; `fresh`: t begins as
 * zeros. bfloat16x3: (A + a)(W + w) without a w, the rests `words` behind. Meanwhile `next` is fetched, so
 * many bytes a step (of bfloat16x3 its leading parts alone). */
BVL_INLINE void amx_tile(const bvl_precision p, int mr, bool fresh, float *t, int64_t ldt, const float *a,
                         int64_t lda, const uint8_t *w, int64_t count, int64_t words, const uint8_t *next,
                         int64_t fetch) {
    __asm__ volatile("" : : : "memory");
    if (fresh) {
        tile_clear(0);
        tile_clear(1);
        if (mr > 16) {
            tile_clear(2);
            tile_clear(3);
        }
    } else {
        tile_load(0, t, 4 * ldt);
        tile_load(1, t + 16, 4 * ldt);
        if (mr > 16) {
            tile_load(2, t + 16 * ldt, 4 * ldt);
            tile_load(3, t + 16 * ldt + 16, 4 * ldt);
        }
    }
    for (int64_t k = 0; k < count; k += 16, a += 16, w += AMX_STEP_BYTES, next += fetch) {
        for (int64_t i = 0; i < fetch; i += 64) __builtin_prefetch(next + i, 0, 2);
        AMX_STEP(p, mr, a, lda, w);
        if (p != BVL_BFLOAT16X3) continue;
        AMX_STEP(p, mr, a + words, lda, w);
        AMX_STEP(p, mr, a, lda, w + words * 128);
    }
    tile_store(0, t, 4 * ldt);
    tile_store(1, t + 16, 4 * ldt);
    if (mr > 16) {
        tile_store(2, t + 16 * ldt, 4 * ldt);
        tile_store(3, t + 16 * ldt + 16, 4 * ldt);
    }
}

/* Rows of a product in tiles of one height, because configuring anew takes as long as three steps: the last
 * tile begins early enough to end with the last row, so that some rows may be computed twice, which changes
 * nothing of them. */
typedef struct {
    int64_t first, rows, tiles;
    int height;
} amx_rows;

static int64_t amx_tile_begin(const amx_rows *r, int64_t i) {
    return r->first + BVL_MIN(i * r->height, r->rows - r->height);
}

/* Columns of one panel, tiles [i0, i1), at most AMX_GROUP of them. */
BVL_INLINE void amx_group(const bvl_precision p, const finish_function finish, float *c, int64_t ldc,
                          const float *a, sums *s, int64_t K, const amx_rows *r, int64_t i0, int64_t i1,
                          const bvl_epilogue *epilogue) {
    float t[AMX_GROUP * AMX_ROWS * V_NR] __attribute__((aligned(64)));
    const int64_t words = k_words(p, K), skip = p == BVL_INT8 ? INT8_HEAD : 0;
    const int64_t most = i1 - i0 == 1 ? words : p == BVL_BFLOAT16X3 ? AMX_WORDS / 2 : AMX_WORDS;
    const bool direct = p != BVL_INT8 && s->width == V_NR && words <= most && !epilogue->bias &&
                        !epilogue->residual && !epilogue->bf16 && epilogue->act == BVL_ACT_NONE;
    const int64_t fetch = r->tiles < AMX_FETCH_TILES ? 0 : AMX_STEP_BYTES / r->tiles;
    const uint8_t *next = s->panel + panel_bytes(p, K);
    int64_t begin = 0;
    for (int64_t left = (words + most - 1) / most; left; left--) {
        const int64_t count = bvl_round_up((words - begin) / left, WORD_ALIGN);
        for (int64_t i = i0; i < i1; i++) {
            const int64_t m0 = amx_tile_begin(r, i);
            amx_tile(p, r->height, begin == 0, direct ? c + m0 * ldc + s->n0 : t + (i - i0) * AMX_ROWS * V_NR,
                     direct ? ldc : V_NR, a + m0 * s->lda + skip + begin, s->lda, s->panel + begin * 128,
                     count, words, next + begin * 128 + i * (count / 16 * fetch), fetch);
        }
        begin += count;
    }
    for (int64_t i = i0; i < i1 && !direct; i++) {
        const int64_t m0 = r->first + i * r->height, again = m0 - amx_tile_begin(r, i);
        bvl_epilogue e = *epilogue;
        if (e.residual) e.residual += m0 * e.ldr;
        s->t = t + ((i - i0) * AMX_ROWS + again) * V_NR;
        s->mr = r->height - (int)again;
        s->a = a + m0 * s->lda;
        finish(c + m0 * ldc, ldc, s, &e);
    }
}

BVL_INLINE void amx_multiply(const bvl_precision p, const finish_function finish, float *c, int64_t ldc,
                             const float *a, int64_t lda, const float *packed, int64_t M, int64_t N,
                             int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue) {
    const int64_t bytes = panel_bytes(p, K), row = 4 * BVL_MAX(lda, 1);
    const int64_t most = BVL_MAX(AMX_ROWS, AMX_BLOCK_BYTES / row / AMX_ROWS * AMX_ROWS);
    const int64_t blocks = (M + most - 1) / most;
    int configured = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t begin = M * block / blocks, rows = M * (block + 1) / blocks - begin;
        const int64_t tiles = (rows + AMX_ROWS - 1) / AMX_ROWS, groups = (tiles + AMX_GROUP - 1) / AMX_GROUP;
        const amx_rows r = {begin, rows, tiles, (int)((rows + tiles - 1) / tiles)};
        if (r.height != configured) amx_configure(configured = r.height);
        for (int64_t panel = p0; panel < p1; panel++) {
            sums s = sums_of_panel(NULL, (const uint8_t *)packed + panel * bytes, bytes, panel, N, lda);
            for (int64_t g = 0; g < groups; g++)
                amx_group(p, finish, c, ldc, a, &s, K, &r, tiles * g / groups, tiles * (g + 1) / groups,
                          epilogue);
        }
    }
    if (configured) tile_release();
}

#endif
