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

#define V_LOG2E 1.44269504f

/* 2^x for x <= 127, 0 below -126; NaN gives NaN. x = n + r with |r| <= 1/2, 2^r by the polynomial of smallest
 * relative error: 3e-9 of degree 6, so that rounding decides (below 1e-7); `rough`: 8e-5 of degree 3, a
 * thirtieth of what rounding to bfloat16 leaves. */
BVL_INLINE vf v_exp2_below(const bool rough, vf x) {
    const vf n = v_round(x), r = x - n;
    vf p;
    if (rough) {
        p = v_fma(v_set1(0.0551714189f), r, v_set1(0.24261117f));
        p = v_fma(p, r, v_set1(0.693261027f));
        p = v_fma(p, r, v_set1(0.999928057f));
    } else {
        p = v_fma(v_set1(1.53264715e-4f), r, v_set1(1.33908063e-3f));
        p = v_fma(p, r, v_set1(9.61850584e-3f));
        p = v_fma(p, r, v_set1(0.0555035993f));
        p = v_fma(p, r, v_set1(0.240226477f));
        p = v_fma(p, r, v_set1(0.693147182f));
        p = v_fma(p, r, v_set1(1.0f));
    }
    return v_scale2(p, n, x, v_set1(-126.0f));
}

BVL_INLINE vf v_inverse(const bool rough, vf x) {
    if (rough) return v_rough_inverse(x);
    return v_set1(1.0f) / x;
}

/* 1 / (1 + exp(-s x)) */
BVL_INLINE vf v_sigmoid(const bool rough, vf x, float s) {
    const vf one = v_set1(1.0f);
    /* in this order NaN passes through */
    return v_inverse(rough, one + v_exp2_below(rough, v_min(v_set1(127.0f), v_set1(-V_LOG2E * s) * x)));
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
