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
BVL_INLINE vf v_round(vf x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
/* x * 2^n, n whole */
BVL_INLINE vf v_scale2(vf x, vf n) {
    return _mm512_scalef_ps(x, n);
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
