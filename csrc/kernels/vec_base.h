/* vec_base.h: 4 floats as a compiler vector, so it builds on any machine; fma is not fused here. */

typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
#define V_WIDTH 4
#define V_MR 4

BVL_INLINE vf v_load(const float *p) {
    vf x;
    memcpy(&x, p, sizeof x);
    return x;
}
BVL_INLINE void v_store(float *p, vf x) {
    memcpy(p, &x, sizeof x);
}
BVL_INLINE vf v_set1(float x) {
    return (vf){x, x, x, x};
}
BVL_INLINE vf v_fma(vf a, vf b, vf c) {
    return a * b + c;
}
/* c ? x : y on lanes, c a comparison's result */
BVL_INLINE vf v_blend(vi c, vf x, vf y) {
    union {
        vf f;
        vi i;
    } a = {x}, b = {y}, r;
    r.i = (c & a.i) | (~c & b.i);
    return r.f;
}
/* like the x86 instructions: the second operand where either is NaN */
BVL_INLINE vf v_max(vf a, vf b) {
    return v_blend(a > b, a, b);
}
BVL_INLINE vf v_min(vf a, vf b) {
    return v_blend(a < b, a, b);
}
/* to the nearest whole number, |x| < 2^22 */
BVL_INLINE vf v_round(vf x) {
    const vf magic = v_set1(12582912.0f); /* 1.5 * 2^23: adding it leaves no fraction bits */
    return (x + magic) - magic;
}
/* x * 2^n, n whole, the result a normal number */
BVL_INLINE vf v_scale2(vf x, vf n) {
    union {
        vf f;
        vi i;
    } r = {x};
    r.i += (vi){(int)n[0], (int)n[1], (int)n[2], (int)n[3]} << 23;
    return r.f;
}
/* a < b ? x : y */
BVL_INLINE vf v_select_lt(vf a, vf b, vf x, vf y) {
    return v_blend(a < b, x, y);
}
BVL_INLINE vf v_load_tail(const float *p, int n) {
    vf x = v_set1(0.0f);
    for (int i = 0; i < n; i++) x[i] = p[i];
    return x;
}
BVL_INLINE void v_store_tail(float *p, vf x, int n) {
    for (int i = 0; i < n; i++) p[i] = x[i];
}
BVL_INLINE float v_sum(vf x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}
BVL_INLINE float v_hmax(vf x) {
    return fmaxf(fmaxf(x[0], x[2]), fmaxf(x[1], x[3]));
}
