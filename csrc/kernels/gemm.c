/* gemm.c: C[M, N] = act(A[M, K] W[N, K]^T + bias), or A W^T + bias + residual, in each precision.
 *
 * W is packed once into panels of V_NR columns, [panel][word of K][V_NR]; A is read as operand rows (dot.h).
 * For each block of rows that stays in the nearer caches, each panel is streamed once per tile of up to
 * V_MR rows; a tile is V_MR x V_NR accumulators in registers: per word of K, two vectors of W and one
 * broadcast of A per row. With AMX, all products but float32's are amx.h's.
 *
 *   int8: W[n, k] ~ s[n] (u[n, k] - 128), A[i, k] ~ r[i] q[i, k] + outliers, so
 *   C[i, n] = s[n] (r[i] (sum_k u q - 128 sum_k q) + sum over the outliers of A[i, k] (u[n, k] - 128))
 *
 * Every element of C is one chain over k whatever the tile's height, so a row's result does not depend on M.
 * Compiled once per instruction set.
 */
#include "level.h"

#include "epilogue.h"
#include "vec.h"

#if defined(BVL_LEVEL_AMX)
#include "amx.h"
#endif

/* Whether a tile of that precision adds bias and residual itself (store_sums). */
#define IN_REGISTERS(p) ((p) != BVL_INT8)

#define ROW_BLOCK_BYTES                                                                \
    (1536 * 1024) /* of A, read again for every panel: what stays in the nearer caches \
                   */

/* Rows of a tile from which on the next panel is fetched meanwhile; fewer wait for memory. */
#define FETCH_ROWS 4

/* Sums as they leave the registers: plus bias and residual, and as bfloat16 if asked; no activation, which
 * would need more registers than a tile leaves. */
BVL_INLINE void store_sums(const bvl_precision p, const int mr, float *t, int64_t ldt, vf *c0, vf *c1,
                           const bvl_epilogue *e) {
    if (IN_REGISTERS(p) && e->bias) {
        const vf b0 = v_load(e->bias), b1 = v_load(e->bias + V_WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) c0[i] = c0[i] + b0, c1[i] = c1[i] + b1;
    }
    if (IN_REGISTERS(p) && e->residual) {
        const float *residual = e->residual;
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++, residual += e->ldr)
            c0[i] = c0[i] + v_load(residual), c1[i] = c1[i] + v_load(residual + V_WIDTH);
    }
    if (IN_REGISTERS(p) && BF16_STEP == 2 && e->bf16) {
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++, t += ldt) {
            v_store_bf16((uint16_t *)(void *)t, c0[i], V_WIDTH);
            v_store_bf16((uint16_t *)(void *)t + V_WIDTH, c1[i], V_WIDTH);
        }
        return;
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++, t += ldt) {
        v_store(t, c0[i]);
        v_store(t + V_WIDTH, c1[i]);
    }
}

/* t[mr, V_NR], rows ldt apart, = A[mr] x panel over all words, by way of store_sums; mr and p are constants
 * at each call. Rows of A are reached from one pointer per three rows, plus 0, 1 or 2 strides: few enough
 * registers for the whole tile. Meanwhile `next`, a share of the panel after this one, is fetched, `step`
 * bytes a word. */
BVL_INLINE void tile(const bvl_precision p, const int mr, float *t, int64_t ldt, const float *a, int64_t lda,
                     const uint8_t *panel, int64_t words, const uint8_t *next, int64_t step,
                     const bvl_epilogue *e) {
    vf c0[V_MR], c1[V_MR];
    const float *rows[(V_MR + 2) / 3];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) c0[i] = c1[i] = v_set1(0.0f);
#pragma GCC unroll 16
    for (int i = 0; i < mr; i += 3) rows[i / 3] = a + i * lda;
    for (int64_t k = 0; k < words; k++) {
        const vf w0 = load_w(p, panel), w1 = load_w(p, panel + w_bytes(p));
        panel += 2 * w_bytes(p);
        if (mr >= FETCH_ROWS) {
            __builtin_prefetch(next, 0, 2);
            if (2 * w_bytes(p) > 64) __builtin_prefetch(next + 64, 0, 2);
            next += step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            const vf x = v_set1(rows[i / 3][(i % 3) * lda]);
            c0[i] = dot(p, c0[i], w0, x);
            c1[i] = dot(p, c1[i], w1, x);
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i += 3) rows[i / 3]++;
    }
    store_sums(p, mr, t, ldt, c0, c1, e);
}

BVL_INLINE void run_tile(const bvl_precision p, int mr, float *t, int64_t ldt, const float *a, int64_t lda,
                         const uint8_t *panel, int64_t words, const uint8_t *next, int64_t step,
                         const bvl_epilogue *e) {
#define CASE(n) \
    case n: tile(p, n, t, ldt, a, lda, panel, words, next, step, e); break;
    switch (mr) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
#if V_MR > 4
        CASE(5)
        CASE(6)
#endif
#if V_MR > 6
        CASE(7)
        CASE(8)
        CASE(9)
        CASE(10)
        CASE(11)
        CASE(12)
        CASE(13)
        CASE(14)
#endif
    }
#undef CASE
}

BVL_INLINE void multiply(const bvl_precision p, const finish_function finish, float *c, int64_t ldc,
                         const float *a, int64_t lda, const float *packed, int64_t M, int64_t N, int64_t K,
                         int64_t p0, int64_t p1, const bvl_epilogue *epilogue) {
    float t[V_MR * V_NR] __attribute__((aligned(64)));
    const bvl_epilogue none = {0};
    /* nothing to do to the sums that store_sums does not */
    const bool plain = IN_REGISTERS(p) && epilogue->act == BVL_ACT_NONE && !epilogue->low;
    const int64_t words = k_words(p, K), bytes = panel_bytes(p, K), skip = p == BVL_INT8 ? INT8_HEAD : 0;
    const int64_t most = BVL_MAX(V_MR, ROW_BLOCK_BYTES / (4 * BVL_MAX(words, 1)) / V_MR * V_MR);
    const int64_t blocks = (M + most - 1) / most;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t begin = M * block / blocks, end = M * (block + 1) / blocks;
        const int64_t tiles = (end - begin + V_MR - 1) / V_MR;
        for (int64_t panel = p0; panel < p1; panel++) {
            const uint8_t *w = (const uint8_t *)packed + panel * bytes;
            sums s = sums_of_panel(t, w, bytes, panel, N, lda);
            const int64_t share = bytes / tiles;
            const bool direct = plain && s.width == V_NR;
            const int64_t from = direct ? s.n0 : 0; /* finish counts columns from the first */
            for (int64_t i = 0; i < tiles; i++) {
                const int64_t m0 = begin + (end - begin) * i / tiles;
                s.mr = (int)(begin + (end - begin) * (i + 1) / tiles - m0);
                s.a = a + m0 * lda;
                bvl_epilogue e = *epilogue;
                if (e.residual) e.residual += m0 * e.ldr + from;
                if (e.bias) e.bias += from;
                float *to = direct ? c + m0 * ldc + s.n0 / (e.bf16 ? 2 : 1) : t;
                run_tile(p, s.mr, to, direct ? ldc : V_NR, s.a + skip, lda, w, words, w + bytes + i * share,
                         share / words, direct ? &e : &none);
                if (!direct) finish(c + m0 * ldc, ldc, &s, &e);
            }
        }
    }
}

#if defined(BVL_LEVEL_AMX)
#define MULTIPLY(P) ((P) == BVL_FLOAT32 ? multiply : amx_multiply)
#else
#define MULTIPLY(P) multiply
#endif

/* The functions of one precision. */
#define PRECISION(P, name)                                                                                \
    static int64_t packed_##name(int64_t N, int64_t K) {                                                  \
        return (N + V_NR - 1) / V_NR * panel_bytes(P, K) / 4;                                             \
    }                                                                                                     \
    static int64_t operand_##name(int64_t K) {                                                            \
        return P == BVL_BFLOAT16X3 ? 2 * k_words(P, K) : k_words(P, K) + (P == BVL_INT8 ? INT8_HEAD : 0); \
    }                                                                                                     \
    BVL_NOINLINE static void finish_##name(float *c, int64_t ldc, const sums *s, const bvl_epilogue *e) { \
        finish_tile(P, c, ldc, s, e);                                                                     \
    }                                                                                                     \
    static void gemm_##name(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed,      \
                            int64_t M, int64_t N, int64_t K, int64_t p0, int64_t p1,                      \
                            const bvl_epilogue *epilogue) {                                               \
        MULTIPLY(P)(P, finish_##name, c, ldc, a, lda, packed, M, N, K, p0, p1, epilogue);                 \
    }
PRECISION(BVL_FLOAT32, float32)
PRECISION(BVL_BFLOAT16, bfloat16)
PRECISION(BVL_INT8, int8)
#if defined(BVL_LEVEL_AMX)
PRECISION(BVL_BFLOAT16X3, bfloat16x3)
#endif

const bvl_product BVL_NAME(bvl_products)[BVL_PRECISION_COUNT] = {
    [BVL_FLOAT32] = {packed_float32, operand_float32, BVL_NAME(bvl_pack_float32), NULL, gemm_float32},
    [BVL_BFLOAT16] = {packed_bfloat16, operand_bfloat16, BVL_NAME(bvl_pack_bfloat16),
                      BF16_STEP == 2 ? BVL_NAME(bvl_load_bfloat16) : NULL, gemm_bfloat16},
    [BVL_INT8] = {packed_int8, operand_int8, BVL_NAME(bvl_pack_int8), BVL_NAME(bvl_load_int8), gemm_int8},
#if defined(BVL_LEVEL_AMX)
    [BVL_BFLOAT16X3] = {packed_bfloat16x3, operand_bfloat16x3, BVL_NAME(bvl_pack_bfloat16x3),
                        BVL_NAME(bvl_load_bfloat16x3), gemm_bfloat16x3},
#endif
};
