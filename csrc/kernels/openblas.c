/* openblas.c: the few OpenBLAS symbols used, found by dlopen: loading the library starts its threads, so
 * importing beyondvl must not. */
#define _GNU_SOURCE
#include "openblas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

enum { BLAS_NR = 32 }; /* columns of a "panel", here only a unit of splitting */
enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 }; /* CBLAS's own numbers */

static char library_path[4096];
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static void *library;
static void (*sgemm)(int, int, int, int, int, int, float, const float *, int, const float *, int, float,
                     float *, int);
static void (*set_num_threads)(int);
static char *(*get_config)(void);

void bvl_openblas_set_path(const char *path) {
    snprintf(library_path, sizeof library_path, "%s", path);
}

bvl_status bvl_openblas_open(int threads, bvl_error *err) {
    bvl_status status = BVL_OK;
    pthread_mutex_lock(&opening);
    if (!library) {
        void *handle = dlopen(library_path, RTLD_NOW | RTLD_LOCAL);
        if (handle) {
            *(void **)&sgemm = dlsym(handle, "scipy_cblas_sgemm");
            *(void **)&set_num_threads = dlsym(handle, "scipy_openblas_set_num_threads");
            *(void **)&get_config = dlsym(handle, "scipy_openblas_get_config");
        }
        if (handle && sgemm && set_num_threads && get_config)
            library = handle;
        else
            status = bvl_fail(err, BVL_MISSING, "OpenBLAS: %s: %s", library_path,
                              handle ? "lacks scipy_cblas_sgemm" : dlerror());
    }
    if (library && threads > 0) set_num_threads(threads);
    pthread_mutex_unlock(&opening);
    return status;
}

bool bvl_openblas_loaded(void) {
    pthread_mutex_lock(&opening);
    const bool loaded = library != NULL;
    pthread_mutex_unlock(&opening);
    return loaded;
}

const char *bvl_openblas_config(void) {
    return bvl_openblas_loaded() ? get_config() : NULL;
}

void bvl_openblas_gemm_nt(float *c, int64_t ldc, const float *a, int64_t lda, const float *w, int64_t ldw,
                          int64_t M, int64_t N, int64_t K) {
    sgemm(ROW_MAJOR, NO_TRANS, TRANS, (int)M, (int)N, (int)K, 1.0f, a, (int)lda, w, (int)ldw, 0.0f, c,
          (int)ldc);
}

static int64_t plain_words(int64_t N, int64_t K) {
    return bvl_round_up(N, BLAS_NR) * K;
}

static int64_t plain_operand(int64_t K) {
    return K;
}

/* "Packing" is a plain copy as rows of W; panels are only a unit of splitting. */
static void plain_pack(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                       int64_t p0, int64_t p1) {
    const int64_t nr = BLAS_NR;
    for (int64_t n = p0 * nr; n < BVL_MIN(p1 * nr, N); n++)
        for (int64_t k = 0; k < K; k++) dst[n * K + k] = transposed ? w[k * ld + n] : w[n * ld + k];
}

static void blas_gemm(const bvl_kernels *k, float *c, int64_t ldc, const float *a, int64_t lda,
                      const float *packed, int64_t M, int64_t N, int64_t K, int64_t p0, int64_t p1,
                      const bvl_epilogue *e) {
    const int64_t n0 = p0 * BLAS_NR, width = BVL_MIN(p1 * BLAS_NR, N) - n0;
    if (M < 1 || width < 1) return;
    c += n0;
    const bool add = e->residual != NULL;
    if (add && e->residual + n0 != c)
        for (int64_t i = 0; i < M; i++)
            memcpy(c + i * ldc, e->residual + i * e->ldr + n0, (size_t)width * sizeof(float));
    sgemm(ROW_MAJOR, NO_TRANS, TRANS, (int)M, (int)width, (int)K, 1.0f, a, (int)lda, packed + n0 * K, (int)K,
          add ? 1.0f : 0.0f, c, (int)ldc);
    const float *bias = e->bias ? e->bias + n0 : NULL;
    for (int64_t i = 0; i < M && (bias || e->low || e->act != BVL_ACT_NONE); i++, c += ldc) {
        k->activate(c, c, bias, e->low ? BVL_ACT_NONE : e->act, width);
        if (!e->low) continue;
        k->clamp(c, e->low + n0, e->high + n0, width);
        k->activate(c, c, NULL, e->act, width);
    }
}

static bvl_kernels tables[BVL_ISA_COUNT];

/* The product of each level, which activates by the kernels of that level. */
#define LEVEL(isa, ISA)                                                                                  \
    static void blas_gemm_##isa(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed, \
                                int64_t M, int64_t N, int64_t K, int64_t p0, int64_t p1,                 \
                                const bvl_epilogue *e) {                                                 \
        blas_gemm(&tables[BVL_ISA_##ISA], c, ldc, a, lda, packed, M, N, K, p0, p1, e);                   \
    }
BVL_LEVELS
#undef LEVEL

#define LEVEL(isa, ISA) \
    [BVL_ISA_##ISA] = {[BVL_FLOAT32] = {plain_words, plain_operand, plain_pack, NULL, blas_gemm_##isa}},
static const bvl_product products[BVL_ISA_COUNT][BVL_PRECISION_COUNT] = {BVL_LEVELS};
#undef LEVEL

const bvl_kernels *bvl_openblas_kernels(const bvl_kernels *kernels) {
    bvl_kernels *table = &tables[kernels->isa];
    pthread_mutex_lock(&opening);
    if (table->product !=
        products[kernels->isa]) { /* filled once: programs keep the pointer and read it without a lock */
        bvl_kernels filled = *kernels;
        filled.nr = BLAS_NR;
        filled.bf16_rows = false;
        filled.product = products[kernels->isa];
        *table = filled;
    }
    pthread_mutex_unlock(&opening);
    return table;
}
