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
    return (vf)((c & (vi)x) | (~c & (vi)y));
}
/* like the x86 instructions: the second operand where either is NaN */
BVL_INLINE vf v_max(vf a, vf b) {
    return v_blend(a > b, a, b);
}
BVL_INLINE vf v_min(vf a, vf b) {
    return v_blend(a < b, a, b);
}
BVL_INLINE vf v_abs(vf x) {
    return v_max(x, v_set1(0.0f) - x);
}
BVL_INLINE vf v_sqrt(vf x) {
    for (int i = 0; i < V_WIDTH; i++) x[i] = sqrtf(x[i]);
    return x;
}
/* to the nearest whole number, |x| < 2^22 */
BVL_INLINE vf v_round(vf x) {
    const vf magic = v_set1(12582912.0f); /* 1.5 * 2^23: adding it leaves no fraction bits */
    return (x + magic) - magic;
}
/* a < b ? x : y */
BVL_INLINE vf v_select_lt(vf a, vf b, vf x, vf y) {
    return v_blend(a < b, x, y);
}
/* p * 2^n, n whole, a normal number; 0 where x < low */
BVL_INLINE vf v_scale2(vf p, vf n, vf x, vf low) {
    const vf power = v_max(v_set1(-127.0f), n);
    const vi bits = {(int)power[0], (int)power[1], (int)power[2], (int)power[3]};
    return v_blend(x < low, v_set1(0.0f), (vf)((vi)p + (bits << 23)));
}
BVL_INLINE vf v_rough_inverse(vf x) {
    return v_set1(1.0f) / x;
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
/* bfloat16 -> float */
BVL_INLINE vf v_load_bf16(const uint16_t *p) {
    return (vf)((vi){(int)((uint32_t)p[0] << 16), (int)((uint32_t)p[1] << 16), (int)((uint32_t)p[2] << 16),
                     (int)((uint32_t)p[3] << 16)});
}
/* 4 x 2 bytes -> 4 x 2 int16 */
BVL_INLINE vf v_load_u8_pairs(const uint8_t *p) {
    vi x;
    for (int i = 0; i < 4; i++) x[i] = p[2 * i] | p[2 * i + 1] << 16;
    return (vf)(x);
}
BVL_INLINE vf v_dot_int8(vf acc, vf w, vf x) {
    const vi u = (vi)w, s = (vi)x;
    const vi high = (u >> 16) * (s >> 16), low = (u & 0xffff) * ((s << 16) >> 16);
    return (vf)((vi)acc + high + low);
}
/* int32 bits -> floats */
BVL_INLINE vf v_from_int(vf bits) {
    const vi x = (vi)bits;
    return (vf){(float)x[0], (float)x[1], (float)x[2], (float)x[3]};
}
/* bits of int32 - s */
BVL_INLINE vf v_sub_int(vf bits, int32_t s) {
    return (vf)((vi)bits - s);
}
/* byte `lane` of each of 4 groups, as floats */
BVL_INLINE vf v_u8_lane(const uint8_t *p, int lane) {
    return (vf){(float)p[lane], (float)p[2 + lane], (float)p[4 + lane], (float)p[6 + lane]};
}
/* 4 floats -> the nearest digits; returns their sum in int32 bits added to `sum` */
BVL_INLINE vf v_store_digits(void *p, vf x, vf sum) {
    int16_t n[4];
    const vf nearest = v_round(x);
    vi whole;
    for (int i = 0; i < 4; i++) whole[i] = n[i] = (int16_t)nearest[i];
    memcpy(p, n, sizeof n);
    return (vf)((vi)sum + whole);
}
BVL_INLINE int32_t v_sum_int(vf bits) {
    const vi x = (vi)bits;
    return x[0] + x[1] + x[2] + x[3];
}
/* how many lanes have a > b */
BVL_INLINE int v_count_gt(vf a, vf b) {
    const vi c = a > b;
    return -(c[0] + c[1] + c[2] + c[3]);
}
