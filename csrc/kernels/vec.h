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

/* exp(x), relative error below 2e-7 for x in [-87, 88]; smaller x give 0, larger ones exp(88).
 * x = n ln2 + r with |r| <= ln2 / 2, exp(r) by its Taylor series to degree 7. NaN gives NaN. */
BVL_INLINE vf v_exp(vf x) {
    const vf low = v_set1(-87.33654f), high = v_set1(88.0f);
    const vf clamped = v_min(high, v_max(low, x)); /* in this order NaN passes through */
    const vf n = v_round(clamped * v_set1(1.44269504f));
    vf r = v_fma(n, v_set1(-0.693359375f), clamped);
    r = v_fma(n, v_set1(2.12194440e-4f), r);
    vf p = v_set1(1.0f / 5040);
    p = v_fma(p, r, v_set1(1.0f / 720));
    p = v_fma(p, r, v_set1(1.0f / 120));
    p = v_fma(p, r, v_set1(1.0f / 24));
    p = v_fma(p, r, v_set1(1.0f / 6));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, r, v_set1(1.0f));
    p = v_fma(p, r, v_set1(1.0f));
    return v_select_lt(x, low, v_set1(0.0f), v_scale2(p, n));
}

BVL_INLINE vf v_sigmoid(vf x) {
    const vf one = v_set1(1.0f);
    return one / (one + v_exp(v_set1(0.0f) - x));
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
