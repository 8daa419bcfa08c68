/* gemm.c: C[M, N] = act(A[M, K] W[N, K]^T + bias), or A W^T + bias + residual; float32.
 *
 * W is packed once into panels of V_NR columns, [panel][K][V_NR]. For each block of rows that stays in
 * the second-level cache, each panel is streamed once per tile of up to V_MR rows; a tile is V_MR x V_NR
 * accumulators in registers: per k, two vectors of W and one broadcast of A per row.
 *
 * Every element of C is one chain of fused multiply-adds over k = 0 .. K-1 whatever the tile's height, so a
 * row's result does not depend on M. Compiled once per instruction set.
 */
#include "gemm.h"

#include "activations.h"
#include "vec.h"

#define ROW_BLOCK_BYTES (384 * 1024) /* of A kept in the second-level cache */

void BVL_NAME(bvl_gemm_pack)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                             int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; p++) {
        float *panel = dst + p * V_NR * K;
        const int64_t n0 = p * V_NR, width = BVL_MIN(V_NR, N - n0);
        if (transposed) {
            for (int64_t k = 0; k < K; k++) {
                memcpy(panel + k * V_NR, w + k * ld + n0, (size_t)width * sizeof(float));
                for (int64_t j = width; j < V_NR; j++) panel[k * V_NR + j] = 0;
            }
            continue;
        }
        /* one cache line of each row at a time: rows a power of two apart share cache sets */
        for (int64_t k0 = 0; k0 < K; k0 += 16) {
            const int64_t k1 = BVL_MIN(k0 + 16, K);
            for (int64_t j = 0; j < width; j++)
                for (int64_t k = k0; k < k1; k++) panel[k * V_NR + j] = w[(n0 + j) * ld + k];
            for (int64_t j = width; j < V_NR; j++)
                for (int64_t k = k0; k < k1; k++) panel[k * V_NR + j] = 0;
        }
    }
}

/* t[mr, V_NR] = A[mr, K] x panel; mr is a constant at each call. Rows are reached from one pointer per
 * three rows, plus 0, 1 or 2 strides: few enough registers for the whole tile. */
BVL_INLINE void tile(const int mr, float *t, const float *a, int64_t lda, const float *panel, int64_t K) {
    vf c0[V_MR], c1[V_MR];
    const float *rows[(V_MR + 2) / 3];
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) c0[i] = c1[i] = v_set1(0.0f);
#pragma GCC unroll 16
    for (int i = 0; i < mr; i += 3) rows[i / 3] = a + i * lda;
    for (int64_t k = 0; k < K; k++) {
        const vf w0 = v_load(panel), w1 = v_load(panel + V_WIDTH);
        panel += V_NR;
#pragma GCC unroll 16
        for (int i = 0; i < mr; i++) {
            const vf x = v_set1(rows[i / 3][(i % 3) * lda]);
            c0[i] = v_fma(x, w0, c0[i]);
            c1[i] = v_fma(x, w1, c1[i]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < mr; i += 3) rows[i / 3]++;
    }
#pragma GCC unroll 16
    for (int i = 0; i < mr; i++) {
        v_store(t + i * V_NR, c0[i]);
        v_store(t + i * V_NR + V_WIDTH, c1[i]);
    }
}

static void run_tile(int mr, float *t, const float *a, int64_t lda, const float *panel, int64_t K) {
#define CASE(n) \
    case n: tile(n, t, a, lda, panel, K); break;
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

/* Writes columns [n0, n0 + width) of one tile through the epilogue. */
static void finish_tile(float *c, int64_t ldc, const float *t, int mr, int64_t n0, int64_t width,
                        const bvl_epilogue *e) {
#define LOOP(ACT)                                                                                \
    for (int i = 0; i < mr; i++)                                                                 \
        for (int64_t j = 0; j < width; j += V_WIDTH) {                                           \
            vf x = v_load(t + i * V_NR + j);                                                     \
            if (e->bias) x = x + v_load_first(e->bias + n0 + j, width - j);                      \
            x = v_activate(ACT, x);                                                              \
            if (e->residual) x = x + v_load_first(e->residual + i * e->ldr + n0 + j, width - j); \
            v_store_first(c + i * ldc + n0 + j, x, width - j);                                   \
        }
    BVL_FOR_ACTIVATION(e->act, LOOP)
#undef LOOP
}

void BVL_NAME(bvl_gemm)(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed, int64_t M,
                        int64_t N, int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue) {
    float t[V_MR * V_NR] __attribute__((aligned(64)));
    const int64_t most = BVL_MAX(V_MR, ROW_BLOCK_BYTES / (4 * BVL_MAX(K, 1)) / V_MR * V_MR);
    const int64_t blocks = (M + most - 1) / most;
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t begin = M * block / blocks, end = M * (block + 1) / blocks;
        const int64_t tiles = (end - begin + V_MR - 1) / V_MR;
        for (int64_t p = p0; p < p1; p++) {
            const int64_t n0 = p * V_NR, width = BVL_MIN(V_NR, N - n0);
            for (int64_t i = 0; i < tiles; i++) {
                const int64_t m0 = begin + (end - begin) * i / tiles;
                const int mr = (int)(begin + (end - begin) * (i + 1) / tiles - m0);
                run_tile(mr, t, a + m0 * lda, lda, packed + p * V_NR * K, K);
                bvl_epilogue e = *epilogue;
                if (e.residual) e.residual += m0 * e.ldr;
                finish_tile(c + m0 * ldc, ldc, t, mr, n0, width, &e);
            }
        }
    }
}
