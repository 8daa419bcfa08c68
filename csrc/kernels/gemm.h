/* gemm.h: the product's kernels of the level this file is compiled for. */
#ifndef BVL_GEMM_H
#define BVL_GEMM_H

#include "kernels.h"

/* A symbol of this level: BVL_NAME(gemm) is gemm_avx2 where BVL_ISA is avx2. */
#define BVL_PASTE2(a, b) a##_##b
#define BVL_PASTE(a, b) BVL_PASTE2(a, b)
#define BVL_NAME(name) BVL_PASTE(name, BVL_ISA)

void BVL_NAME(bvl_gemm_pack)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                             int64_t p0, int64_t p1);
void BVL_NAME(bvl_gemm)(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed, int64_t M,
                        int64_t N, int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue);

#endif
