/* openblas.h: OpenBLAS, opened at first use from the library that ships beside the extension. */
#ifndef BVL_OPENBLAS_H
#define BVL_OPENBLAS_H

#include "kernels.h"

/* Where the library is; called once at import, loads nothing. */
void bvl_openblas_set_path(const char *path);
/* Loads the library if it is not yet; threads > 0 sets how many it may use. MISSING when it cannot. */
bvl_status bvl_openblas_open(int threads, bvl_error *err);
bool bvl_openblas_loaded(void);
/* The library's own description of its build and kernel; NULL before it is loaded. */
const char *bvl_openblas_config(void);

/* C[M, N] = A[M, K] x W[N, K]^T; the library must be open. */
void bvl_openblas_gemm_nt(float *c, int64_t ldc, const float *a, int64_t lda, const float *w, int64_t ldw,
                          int64_t M, int64_t N, int64_t K);

/* A copy of `kernels` whose products run on OpenBLAS (BEYONDVL_GEMM=openblas); the library must be open.
 * Results then follow OpenBLAS's own choice of kernels, which depends on M. */
const bvl_kernels *bvl_openblas_kernels(const bvl_kernels *kernels);

#endif
