/* attention.c: both products of attention run on the matrix kernel, a block of queries at a time, so
 * that keys, values and scores stay in the cache.
 *
 *   K [Tk, hd] is packed as weights of S = Q K^T       (N = Tk, K = hd)
 *   V [Tk, hd] is packed as weights of O = softmax(S) V (N = hd, K = Tk), given transposed
 */
#include "attention.h"

#include <string.h>

#define QUERY_BLOCK 56 /* a multiple of every level's tile height but avx2's, where it is 9.3 tiles */

int64_t bvl_attention_scratch(const bvl_kernels *kernels, int64_t Tk, int64_t hd) {
    return bvl_packed_size(kernels, Tk, hd) + bvl_packed_size(kernels, hd, Tk) + QUERY_BLOCK * bvl_padded(Tk);
}

void bvl_attention(const bvl_kernels *kernels, float *out, const float *q, const float *k, const float *v,
                   const bvl_attention_shape *s, float *scratch) {
    const bvl_epilogue plain = {0};
    const int64_t ld = bvl_padded(s->Tk);
    float *keys = scratch, *values = keys + bvl_packed_size(kernels, s->Tk, s->hd);
    float *scores = values + bvl_packed_size(kernels, s->hd, s->Tk);
    kernels->gemm_pack(keys, k, s->ldkv, s->Tk, s->hd, false, 0, bvl_panels(kernels, s->Tk));
    kernels->gemm_pack(values, v, s->ldkv, s->hd, s->Tk, true, 0, bvl_panels(kernels, s->hd));
    for (int64_t t0 = 0; t0 < s->Tq; t0 += QUERY_BLOCK) {
        const int64_t rows = BVL_MIN(QUERY_BLOCK, s->Tq - t0);
        kernels->gemm(scores, ld, q + t0 * s->ldq, s->ldq, keys, rows, s->Tk, s->hd, 0,
                      bvl_panels(kernels, s->Tk), &plain);
        for (int64_t i = 0; i < rows; i++) {
            float *row = scores + i * ld;
            const int64_t seen = s->causal ? BVL_MIN(t0 + i + 1, s->Tk) : s->Tk;
            kernels->softmax(row, seen, s->scale, s->bias);
            memset(row + seen, 0, (size_t)(s->Tk - seen) * sizeof(float));
        }
        kernels->gemm(out + t0 * s->ldo, s->ldo, scores, ld, values, rows, s->hd, s->Tk, 0,
                      bvl_panels(kernels, s->hd), &plain);
    }
}
