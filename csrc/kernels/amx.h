/* amx.h: products on AMX (all but float32) in tiles of up to 32 rows x 32 columns.
 *
 *   registers 0..3: C, two by two of 16 x 16   4, 5: A, 16 rows x 16 words   6, 7: W, 16 words x 16 columns
 *
 * A word of an operand row is what dot.h says, so A's tile is 16 rows as they lie in memory, and W's is 16
 * lines of a panel. A step of 16 words reads 4 KB and takes 64 cycles, more than the second cache gives, so
 * one side stays in the first: a group of tiles takes a panel 128 words at a time; or, where all rows are two
 * tiles at most, so that weights come from memory, several panels take the rows 48 words at a time, which
 * leaves the way from the second cache to the weights. The group's sums lie in memory meanwhile. (Stores of
 * tiles that miss the first cache take 20 cycles a row, so A and W must not both stream from the second.)
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
    AMX_GROUP = 4,      /* tiles that share the words of a panel or of the rows */
    AMX_WORDS = 128,    /* of a panel at a time: 16 KB */
    AMX_FEW_TILES = 2,  /* of all rows: several panels share these, */
    AMX_FEW_WORDS = 48, /* so many words at a time */
    AMX_STEP_BYTES = 2048,
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

/* Four times `each` lines are fetched in a step, a quarter after each product: all at once they would hold
 * up the loads behind them. */
#define AMX_FETCH(next, each, quarter)        \
    for (int line = 0; line < (each); line++) \
    __builtin_prefetch((next) + 64 * ((each) * (quarter) + line), 0, 2)

/* C += A's 16 words at `a` times W's 16 lines at `w`, all four tiles or the upper two. */
#define AMX_STEP(p, mr, a, lda, w, next, each)         \
    do {                                               \
        tile_load(6, w, 128);                          \
        tile_load(4, a, (lda) * 4);                    \
        tile_dot(p, 0, 4, 6);                          \
        AMX_FETCH(next, each, 0);                      \
        tile_load(7, (w) + 64, 128);                   \
        tile_dot(p, 1, 4, 7);                          \
        AMX_FETCH(next, each, 1);                      \
        if ((mr) > 16) {                               \
            tile_load(5, (a) + 16 * (lda), (lda) * 4); \
            tile_dot(p, 2, 5, 6);                      \
            AMX_FETCH(next, each, 2);                  \
            tile_dot(p, 3, 5, 7);                      \
            AMX_FETCH(next, each, 3);                  \
        } else {                                       \
            AMX_FETCH(next, each, 2);                  \
            AMX_FETCH(next, each, 3);                  \
        }                                              \
    } while (0)

/* `steps` of them; bfloat16x3: (A + a)(W + w) without a w, the rests `words` behind. `each` is a constant. */
BVL_INLINE void amx_steps(const bvl_precision p, const int each, int mr, const float *a, int64_t lda,
                          const uint8_t *w, int64_t steps, int64_t words, const uint8_t *next) {
    for (; steps > 0; steps--, a += 16, w += AMX_STEP_BYTES, next += 256 * each) {
        AMX_STEP(p, mr, a, lda, w, next, each);
        if (p != BVL_BFLOAT16X3) continue;
        AMX_STEP(p, mr, a + words, lda, w, next, 0);
        AMX_STEP(p, mr, a, lda, w + words * 128, next, 0);
    }
}

/* t[mr, V_NR], rows ldt apart, += A[mr] x panel over `count` words, a multiple of 16; `fresh`: t begins as
 * zeros. Meanwhile about `lines` lines from `next` on are fetched (of bfloat16x3 those of leading parts). */
BVL_INLINE void amx_tile(const bvl_precision p, int mr, bool fresh, float *t, int64_t ldt, const float *a,
                         int64_t lda, const uint8_t *w, int64_t count, int64_t words, const uint8_t *next,
                         int64_t lines) {
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
    const int64_t steps = count / 16, rate = lines > 16 * steps ? 32 : lines > 4 * steps ? 16 : 4;
    const int64_t fetching = BVL_MIN(steps, (lines + rate - 1) / rate);
    if (rate == 32)
        amx_steps(p, 8, mr, a, lda, w, fetching, words, next);
    else if (rate == 16)
        amx_steps(p, 4, mr, a, lda, w, fetching, words, next);
    else
        amx_steps(p, 1, mr, a, lda, w, fetching, words, next);
    amx_steps(p, 0, mr, a + 16 * fetching, lda, w + AMX_STEP_BYTES * fetching, steps - fetching, words, next);
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

/* A product as its groups see it. */
typedef struct {
    const float *a; /* [M], lda apart */
    const uint8_t *packed;
    int64_t lda, K, N, bytes; /* of a panel */
    int64_t panels, end;      /* of a group, and of all: what lies behind is not fetched */
} amx_product;

/* A group: tiles [i0, i1) of the rows times panels [q0, q1); `direct`: its sums are C's as they are. */
typedef struct {
    int64_t i0, i1, q0, q1;
    bool direct;
} amx_part;

/* Sums of a group, tile by tile [q1 - q0, i1 - i0, AMX_ROWS, V_NR]. What follows is fetched meanwhile: where
 * panels share rows, the next words of the same panel; else the same words of the next one, a share with each
 * tile of all the rows. */
BVL_INLINE void amx_sum(const bvl_precision p, float *t, float *c, int64_t ldc, const amx_product *x,
                        const amx_rows *r, const amx_part *g, int64_t most) {
    const int64_t words = k_words(p, x->K), skip = p == BVL_INT8 ? INT8_HEAD : 0, tiles = g->i1 - g->i0;
    int64_t begin = 0;
    for (int64_t left = (words + most - 1) / most; left; left--) {
        const int64_t count = bvl_round_up((words - begin) / left, WORD_ALIGN), after = begin + count;
        for (int64_t q = g->q0; q < g->q1; q++) {
            const uint8_t *panel = x->packed + q * x->bytes;
            const bool same = x->panels > 1 && left > 1;
            const uint8_t *next =
                same ? panel + after * 128 : panel + x->panels * x->bytes + (x->panels > 1 ? 0 : begin) * 128;
            const int64_t lines = same                     ? 2 * BVL_MIN(count, words - after)
                                  : q + x->panels < x->end ? 2 * count
                                                           : 0;
            for (int64_t i = g->i0; i < g->i1; i++) {
                const int64_t m0 = amx_tile_begin(r, i);
                float *to = g->direct ? c + m0 * ldc + q * V_NR
                                      : t + ((q - g->q0) * tiles + i - g->i0) * AMX_ROWS * V_NR;
                const int64_t done = lines * i / r->tiles;
                amx_tile(p, r->height, begin == 0, to, g->direct ? ldc : V_NR,
                         x->a + m0 * x->lda + skip + begin, x->lda, panel + begin * 128, count, words,
                         next + 64 * done, lines * (i + 1) / r->tiles - done);
            }
        }
        begin = after;
    }
}

/* At most AMX_GROUP tiles in all. */
BVL_INLINE void amx_group(const bvl_precision p, const finish_function finish, float *c, int64_t ldc,
                          const amx_product *x, const amx_rows *r, amx_part g, const bvl_epilogue *epilogue) {
    float t[AMX_GROUP * AMX_ROWS * V_NR] __attribute__((aligned(64)));
    const int64_t most = (x->panels > 1 ? AMX_FEW_WORDS : AMX_WORDS) / (p == BVL_BFLOAT16X3 ? 2 : 1);
    g.direct = p != BVL_INT8 && g.q1 * V_NR <= x->N && k_words(p, x->K) <= most && !epilogue->bias &&
               !epilogue->residual && !epilogue->bf16 && !epilogue->low && epilogue->act == BVL_ACT_NONE;
    amx_sum(p, t, c, ldc, x, r, &g, most);
    for (int64_t q = g.q0; q < g.q1 && !g.direct; q++) {
        sums s = sums_of_panel(t, x->packed + q * x->bytes, x->bytes, q, x->N, x->lda);
        for (int64_t i = g.i0; i < g.i1; i++) {
            const int64_t m0 = r->first + i * r->height, again = m0 - amx_tile_begin(r, i);
            bvl_epilogue e = *epilogue;
            if (e.residual) e.residual += m0 * e.ldr;
            s.t = t + (((q - g.q0) * (g.i1 - g.i0) + i - g.i0) * AMX_ROWS + again) * V_NR;
            s.mr = r->height - (int)again;
            s.a = x->a + m0 * x->lda;
            finish(c + m0 * ldc, ldc, &s, &e);
        }
    }
}

BVL_INLINE void amx_multiply(const bvl_precision p, const finish_function finish, float *c, int64_t ldc,
                             const float *a, int64_t lda, const float *packed, int64_t M, int64_t N,
                             int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue) {
    amx_product x = {a, (const uint8_t *)packed, lda, K, N, panel_bytes(p, K), 1, p1};
    const int64_t row = 4 * BVL_MAX(lda, 1);
    const int64_t most = BVL_MAX(AMX_ROWS, AMX_BLOCK_BYTES / row / AMX_ROWS * AMX_ROWS);
    const int64_t blocks = (M + most - 1) / most;
    int configured = 0;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t begin = M * block / blocks, rows = M * (block + 1) / blocks - begin;
        const int64_t tiles = (rows + AMX_ROWS - 1) / AMX_ROWS, groups = (tiles + AMX_GROUP - 1) / AMX_GROUP;
        const amx_rows r = {begin, rows, tiles, (int)((rows + tiles - 1) / tiles)};
        if (r.height != configured) amx_configure(configured = r.height);
        x.panels = tiles <= AMX_FEW_TILES ? AMX_GROUP / tiles : 1;
        for (int64_t panel = p0; panel < p1; panel += x.panels)
            for (int64_t g = 0; g < groups; g++) {
                const amx_part part = {tiles * g / groups, tiles * (g + 1) / groups, panel,
                                       BVL_MIN(p1, panel + x.panels), false};
                amx_group(p, finish, c, ldc, &x, &r, part, epilogue);
            }
    }
    if (configured) tile_release();
}

#endif
