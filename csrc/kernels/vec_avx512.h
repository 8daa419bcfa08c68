/* vec_avx512.h: 16 floats, AVX-512 F + DQ. 32 registers: 28 accumulators, 2 of W, 1 broadcast. */
#include <immintrin.h>

typedef __m512 vf;
#define V_WIDTH 16
#define V_MR 14

BVL_INLINE vf v_load(const float *p) {
    return _mm512_loadu_ps(p);
}
BVL_INLINE void v_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}
BVL_INLINE vf v_set1(float x) {
    return _mm512_set1_ps(x);
}
BVL_INLINE vf v_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}
BVL_INLINE vf v_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}
BVL_INLINE vf v_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}
BVL_INLINE vf v_abs(vf x) {
    return _mm512_abs_ps(x);
}
BVL_INLINE vf v_sqrt(vf x) {
    return _mm512_sqrt_ps(x);
}
BVL_INLINE vf v_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* table[i] in each lane, i the last four bits of that lane of `index` */
#define V_TABLE 16
BVL_INLINE vf v_lookup(const float *table, vf index) {
    return _mm512_permutexvar_ps(_mm512_castps_si512(index), v_load(table));
}
/* p * 2^n, n whole; 0 where x < low */
BVL_INLINE vf v_scale2(vf p, vf n, vf x, vf low) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), p, n);
}
/* 1 / x, relative error below 7e-5 */
BVL_INLINE vf v_rough_inverse(vf x) {
    return _mm512_rcp14_ps(x);
}
/* a < b ? x : y */
BVL_INLINE vf v_select_lt(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
BVL_INLINE __mmask16 v_mask(int n) {
    return (__mmask16)((1u << n) - 1);
}
BVL_INLINE vf v_load_tail(const float *p, int n) {
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}
BVL_INLINE void v_store_tail(float *p, vf x, int n) {
    _mm512_mask_storeu_ps(p, v_mask(n), x);
}
BVL_INLINE float v_sum(vf x) {
    return _mm512_reduce_add_ps(x);
}
BVL_INLINE float v_hmax(vf x) {
    return _mm512_reduce_max_ps(x);
}
/* v_sum(x[i]), by the same additions, or v_hmax(x[i]), where no lane is NaN, in all of quarter i */
#define V_FOUR(name, op)                                                                            \
    BVL_INLINE vf name(const vf x[4]) {                                                             \
        vf ab = op(_mm512_shuffle_f32x4(x[0], x[1], 0x44), _mm512_shuffle_f32x4(x[0], x[1], 0xee)); \
        vf cd = op(_mm512_shuffle_f32x4(x[2], x[3], 0x44), _mm512_shuffle_f32x4(x[2], x[3], 0xee)); \
        vf all = op(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));        \
        all = op(all, _mm512_permute_ps(all, 0x4e));                                                \
        return op(all, _mm512_permute_ps(all, 0xb1));                                               \
    }
V_FOUR(v_sum_four, _mm512_add_ps)
V_FOUR(v_hmax_four, _mm512_max_ps)
/* every lane of x[i] = quarter i */
BVL_INLINE void v_spread_four(vf all, vf x[4]) {
    x[0] = _mm512_shuffle_f32x4(all, all, 0x00);
    x[1] = _mm512_shuffle_f32x4(all, all, 0x55);
    x[2] = _mm512_shuffle_f32x4(all, all, 0xaa);
    x[3] = _mm512_shuffle_f32x4(all, all, 0xff);
}
/* bfloat16 -> float */
BVL_INLINE vf v_load_bf16(const uint16_t *p) {
    const __m256i bits = _mm256_loadu_si256((const void *)p);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#if defined(__AVX512BF16__)
BVL_INLINE vf v_dot_bf16(vf acc, vf w, vf x) {
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)x);
}
/* the first n of 16 floats -> bfloat16 */
BVL_INLINE void v_store_bf16(uint16_t *p, vf x, int64_t n) {
    const __m256i bits = (__m256i)_mm512_cvtneps_pbh(x);
    _mm256_mask_storeu_epi16(p, (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1), bits);
}
/* y[j] = even[j] | odd[j] << 16 for the first n of 16 elements, zero for the rest; odd NULL: zeros */
BVL_INLINE void v_store_pairs(uint32_t *y, const uint16_t *even, const uint16_t *odd, int64_t n) {
    const __mmask16 mask = v_mask((int)n);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even));
    __m512i high = _mm512_setzero_si512();
    if (odd) high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd));
    _mm512_storeu_si512(y, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}
/* y[k][j] = word k of row j of x, for k < words and all 16 j, zero from `rows` on; at most 16 of both, which
 * are ldx and ldy words apart */
BVL_INLINE void v_transpose(uint32_t *y, int64_t ldy, const void *x, int64_t ldx, int64_t rows,
                            int64_t words) {
    const __mmask16 mask = v_mask((int)words);
    __m512i a[16], b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        a[i] = _mm512_maskz_loadu_epi32(i < rows ? mask : 0, (const uint32_t *)x + (i < rows ? i : 0) * ldx);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) { /* pairs of rows in each 128 bits */
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* four rows */
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* eight: words i and i + 8, then i + 4 and i + 12 */
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if (i < words) _mm512_storeu_si512(y + i * ldy, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        if (i + 8 < words) _mm512_storeu_si512(y + (i + 8) * ldy, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
}
#endif
/* 16 x 2 bytes -> 16 x 2 int16 */
BVL_INLINE vf v_load_u8_pairs(const uint8_t *p) {
    return _mm512_castsi512_ps(_mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)p)));
}
BVL_INLINE vf v_dot_int8(vf acc, vf w, vf x) {
    const __m512i a = _mm512_castps_si512(acc), u = _mm512_castps_si512(w), s = _mm512_castps_si512(x);
#if defined(__AVX512VNNI__)
    return _mm512_castsi512_ps(_mm512_dpbusd_epi32(a, u, s));
#else
    return _mm512_castsi512_ps(_mm512_add_epi32(a, _mm512_madd_epi16(u, s)));
#endif
}
/* int32 bits -> floats */
BVL_INLINE vf v_from_int(vf bits) {
    return _mm512_cvtepi32_ps(_mm512_castps_si512(bits));
}
/* bits of int32 - s */
BVL_INLINE vf v_sub_int(vf bits, int32_t s) {
    return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(bits), _mm512_set1_epi32(s)));
}
/* byte `lane` of each of 16 groups, as floats */
BVL_INLINE vf v_u8_lane(const uint8_t *p, int lane) {
#if defined(__AVX512VNNI__)
    const __m512i words = _mm512_loadu_si512(p);
#else
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p));
#endif
    const __m512i shifted = _mm512_srl_epi32(words, _mm_cvtsi32_si128(8 * lane));
    return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)));
}
/* 16 floats -> the nearest digits; returns their sum in int32 bits added to `sum` */
BVL_INLINE vf v_store_digits(void *p, vf x, vf sum) {
    const __m512i n = _mm512_cvtps_epi32(x);
#if defined(__AVX512VNNI__)
    _mm_storeu_si128(p, _mm512_cvtepi32_epi8(n));
#else
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(n));
#endif
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sum), n));
}
BVL_INLINE int32_t v_sum_int(vf bits) {
    const __m512i v = _mm512_castps_si512(bits);
    const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}
/* how many lanes have a > b */
BVL_INLINE int v_count_gt(vf a, vf b) {
    return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ));
}
