/* vec.h: the vector type every kernel is written on, chosen by the flags a file is compiled with.
 *
 * vec_<isa>.h gives the type vf (V_WIDTH floats) and what the operators + - * / do not cover.
 * V_MR x V_NR is the tile of C one matrix microkernel keeps in registers (V_NR = 2 vectors).
 * Everything below is built from those primitives, so it exists once.
 */
#ifndef BVL_VEC_H
#define BVL_VEC_H

#include <math.h>
#include <string.h>

#include "../core.h"

#if defined(__AVX512F__) && defined(__AVX512DQ__)
#include "vec_avx512.h"
#elif defined(__AVX2__) && defined(__FMA__)
#include "vec_avx2.h"
#else
#include "vec_base.h"
#endif

#define V_NR (2 * V_WIDTH)

/* exp(x) for x <= 88, 0 below -87.3; NaN gives NaN. x = n ln2 + r with |r| <= ln2 / 2, exp(r) by the
 * polynomial of smallest relative error: 3e-9 of degree 6, so that rounding decides (below 1e-7); `rough`:
 * 8e-5 of degree 3, a thirtieth of what rounding to bfloat16 leaves. */
BVL_INLINE vf v_exp_below(const bool rough, vf x) {
    const vf n = v_round(x * v_set1(1.44269504f));
    vf r, p;
    if (rough) {
        r = v_fma(n, v_set1(-0.69314718f), x);
        p = v_fma(v_set1(0.16566823f), r, v_set1(0.50496423f));
        p = v_fma(p, r, v_set1(1.00016427f));
        p = v_fma(p, r, v_set1(0.99992806f));
    } else {
        r = v_fma(n, v_set1(2.12194440e-4f), v_fma(n, v_set1(-0.693359375f), x));
        p = v_fma(v_set1(1.38153194e-3f), r, v_set1(8.36871378e-3f));
        p = v_fma(p, r, v_set1(4.16683778e-2f));
        p = v_fma(p, r, v_set1(0.166665211f));
        p = v_fma(p, r, v_set1(0.49999994f));
        p = v_fma(p, r, v_set1(1.0f));
        p = v_fma(p, r, v_set1(1.0f));
    }
    return v_scale2(p, n, x, v_set1(-87.33654f));
}

BVL_INLINE vf v_inverse(const bool rough, vf x) {
    if (rough) return v_rough_inverse(x);
    return v_set1(1.0f) / x;
}

BVL_INLINE vf v_sigmoid(const bool rough, vf x) {
    const vf one = v_set1(1.0f);
    /* in this order NaN passes through */
    return v_inverse(rough, one + v_exp_below(rough, v_min(v_set1(88.0f), v_set1(0.0f) - x)));
}

/* Up to V_WIDTH floats; lanes from n on read as zero and are not written. */
BVL_INLINE vf v_load_first(const float *p, int64_t n) {
    return n >= V_WIDTH ? v_load(p) : v_load_tail(p, (int)n);
}

/* The first n lanes of x, then those of rest. */
BVL_INLINE vf v_first(vf x, int64_t n, vf rest) {
    static const float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (n >= V_WIDTH) return x;
    return v_select_lt(v_load(lanes), v_set1((float)n), x, rest);
}

BVL_INLINE void v_store_first(float *p, vf x, int64_t n) {
    if (n >= V_WIDTH)
        v_store(p, x);
    else
        v_store_tail(p, x, (int)n);
}

#endif
