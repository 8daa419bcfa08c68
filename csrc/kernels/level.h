/* level.h: what the files of one level, each compiled with that level's flags, give the table in kernels.c.
 */
#ifndef BVL_LEVEL_H
#define BVL_LEVEL_H

#include "kernels.h"

/* A symbol of this level: BVL_NAME(gemm) is gemm_avx2 where BVL_ISA is avx2. */
#define BVL_PASTE2(a, b) a##_##b
#define BVL_PASTE(a, b) BVL_PASTE2(a, b)
#define BVL_NAME(name) BVL_PASTE(name, BVL_ISA)

/* doubles in a vector */
#if defined(__AVX512F__)
#define BVL_DOUBLES 8
#elif defined(__AVX2__)
#define BVL_DOUBLES 4
#else
#define BVL_DOUBLES 2
#endif

#define BVL_PACK(name)                                                                                 \
    void BVL_NAME(name)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed, \
                        int64_t p0, int64_t p1)
#define BVL_LOAD(name) \
    void BVL_NAME(name)(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t rows, int64_t K)

BVL_PACK(bvl_pack_float32);
BVL_PACK(bvl_pack_bfloat16);
BVL_PACK(bvl_pack_int8);
BVL_PACK(bvl_pack_bfloat16x3);
BVL_LOAD(bvl_load_bfloat16);
BVL_LOAD(bvl_load_int8);
BVL_LOAD(bvl_load_bfloat16x3);
void BVL_NAME(bvl_pack_bf16)(float *dst, const uint16_t *w, int64_t ld, int64_t N, int64_t K,
                             bool transposed);

/* resample.c */
void BVL_NAME(bvl_resample_pack)(int32_t *words, const int32_t *weights);
void BVL_NAME(bvl_resample_horizontal)(uint8_t *y, int64_t ldy, const uint8_t *x, int64_t ldx, int64_t rows,
                                       const bvl_taps *taps, int64_t count, int64_t channels);
void BVL_NAME(bvl_resample_vertical)(uint8_t *y, const uint8_t *const *rows, const int32_t *words,
                                     int64_t groups, int64_t n);

/* scan.c */
#define BVL_SCAN(name) \
    void BVL_NAME(name)(float *scores, const void *rows, int64_t n, int64_t D, const void *query)
BVL_SCAN(bvl_scan_float32);
BVL_SCAN(bvl_scan_bfloat16);
BVL_SCAN(bvl_scan_int8);
BVL_SCAN(bvl_scan_binary);
void BVL_NAME(bvl_widen_rows)(float *y, const void *rows, bvl_row_form form, const float *scales, int64_t n,
                              int64_t D);

/* spectrum.c */
void BVL_NAME(bvl_mel_frames)(float *const *out, int64_t step, const float *const *frames, const bvl_mel *mel,
                              double *scratch);

extern const bvl_product BVL_NAME(bvl_products)[BVL_PRECISION_COUNT];

#endif
