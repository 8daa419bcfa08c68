/* vec_avx2.h: 8 floats, AVX2 + FMA. 16 registers: 12 accumulators, 2 of W, 1 broadcast. */
#include <immintrin.h>

#if defined(BVL_EMULATED)
#define V_DPBUSD _mm256_dpbusd_epi32 /* AVX-512's encoding of the same, for machines without AVX-VNNI */
#else
#define V_DPBUSD _mm256_dpbusd_avx_epi32
#endif

typedef __m256 vf;
#define V_WIDTH 8
#define V_MR 6

BVL_INLINE vf v_load(const float *p) {
    return _mm256_loadu_ps(p);
}
BVL_INLINE void v_store(float *p, vf x) {
    _mm256_storeu_ps(p, x);
}
BVL_INLINE vf v_set1(float x) {
    return _mm256_set1_ps(x);
}
BVL_INLINE vf v_fma(vf a, vf b, vf c) {
    return _mm256_fmadd_ps(a, b, c);
}
BVL_INLINE vf v_max(vf a, vf b) {
    return _mm256_max_ps(a, b);
}
BVL_INLINE vf v_min(vf a, vf b) {
    return _mm256_min_ps(a, b);
}
BVL_INLINE vf v_abs(vf x) {
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}
BVL_INLINE vf v_sqrt(vf x) {
    return _mm256_sqrt_ps(x);
}
BVL_INLINE vf v_round(vf x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* p * 2^n, n whole, a normal number; 0 where x < low */
BVL_INLINE vf v_scale2(vf p, vf n, vf x, vf low) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const vf scaled = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), bits));
    return _mm256_and_ps(scaled, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
}
/* 1 / x; the instruction of 12 bits is too rough, and differs between makers */
BVL_INLINE vf v_rough_inverse(vf x) {
    return v_set1(1.0f) / x;
}
/* a < b ? x : y */
BVL_INLINE vf v_select_lt(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
BVL_INLINE __m256i v_mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
BVL_INLINE vf v_load_tail(const float *p, int n) {
    return _mm256_maskload_ps(p, v_mask(n));
}
BVL_INLINE void v_store_tail(float *p, vf x, int n) {
    _mm256_maskstore_ps(p, v_mask(n), x);
}
BVL_INLINE float v_sum(vf x) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
BVL_INLINE float v_hmax(vf x) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}
/* bfloat16 -> float */
BVL_INLINE vf v_load_bf16(const uint16_t *p) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
}
/* 8 x 2 bytes -> 8 x 2 int16 */
BVL_INLINE vf v_load_u8_pairs(const uint8_t *p) {
    return _mm256_castsi256_ps(_mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)p)));
}
BVL_INLINE vf v_dot_int8(vf acc, vf w, vf x) {
    const __m256i a = _mm256_castps_si256(acc), u = _mm256_castps_si256(w), s = _mm256_castps_si256(x);
#if defined(__AVXVNNI__)
    return _mm256_castsi256_ps(V_DPBUSD(a, u, s));
#else
    return _mm256_castsi256_ps(_mm256_add_epi32(a, _mm256_madd_epi16(u, s)));
#endif
}
/* int32 bits -> floats */
BVL_INLINE vf v_from_int(vf bits) {
    return _mm256_cvtepi32_ps(_mm256_castps_si256(bits));
}
/* bits of int32 - s */
BVL_INLINE vf v_sub_int(vf bits, int32_t s) {
    return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(bits), _mm256_set1_epi32(s)));
}
/* byte `lane` of each of 8 groups, as floats */
BVL_INLINE vf v_u8_lane(const uint8_t *p, int lane) {
#if defined(__AVXVNNI__)
    const __m256i words = _mm256_loadu_si256((const void *)p);
#else
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
#endif
    const __m256i shifted = _mm256_srl_epi32(words, _mm_cvtsi32_si128(8 * lane));
    return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)));
}
/* 8 floats -> the nearest digits; returns their sum in int32 bits added to `sum` */
BVL_INLINE vf v_store_digits(void *p, vf x, vf sum) {
    const __m256i n = _mm256_cvtps_epi32(x);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
#if defined(__AVXVNNI__)
    _mm_storel_epi64(p, _mm_packs_epi16(halves, halves));
#else
    _mm_storeu_si128(p, halves);
#endif
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), n));
}
BVL_INLINE int32_t v_sum_int(vf bits) {
    const __m256i x = _mm256_castps_si256(bits);
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
/* how many lanes have a > b */
BVL_INLINE int v_count_gt(vf a, vf b) {
    return __builtin_popcount((unsigned)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
