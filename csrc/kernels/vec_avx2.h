/* vec_avx2.h: 8 floats, AVX2 + FMA. 16 registers: 12 accumulators, 2 of W, 1 broadcast. */
#include <immintrin.h>

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
BVL_INLINE vf v_round(vf x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x * 2^n, n whole, the result a normal number */
BVL_INLINE vf v_scale2(vf x, vf n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), bits));
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
