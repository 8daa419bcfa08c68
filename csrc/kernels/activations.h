/* activations.h: the activations on vectors; a switch outside the loop, so each loop is branch-free. */
#ifndef BVL_ACTIVATIONS_H
#define BVL_ACTIVATIONS_H

#include "kernels.h"
#include "vec.h"

/* erf(x) = x P(x^2) / Q(x^2) on |x| <= 4, constant beyond; a weighted rational fit of degree 5 / 5,
 * largest error 4e-7. */
BVL_INLINE vf v_erf(vf x) {
    const vf x4 = v_min(v_set1(4.0f), v_max(v_set1(-4.0f), x));
    const vf y = x4 * x4;
    vf p = v_set1(1.98425185e-06f), q = v_set1(3.74643984e-05f);
    p = v_fma(p, y, v_set1(2.85885962e-04f));
    q = v_fma(q, y, v_set1(1.19641444e-03f));
    p = v_fma(p, y, v_set1(3.92471763e-03f));
    q = v_fma(q, y, v_set1(1.52883739e-02f));
    p = v_fma(p, y, v_set1(5.32269878e-02f));
    q = v_fma(q, y, v_set1(1.15731656e-01f));
    p = v_fma(p, y, v_set1(1.94456880e-01f));
    q = v_fma(q, y, v_set1(5.05664989e-01f));
    p = v_fma(p, y, v_set1(1.12837909f));
    q = v_fma(q, y, v_set1(1.0f));
    return v_min(v_set1(1.0f), v_max(v_set1(-1.0f), x4 * p / q));
}

/* x (1 + erf(x / sqrt 2)) / 2, largest error 8.2e-5: what the factor differs from 1/2 by is the odd
 * polynomial of degree 15 that comes closest, exact from 4.2 on. */
BVL_INLINE vf v_rough_gelu(vf x) {
    const vf z = v_min(v_set1(4.2f), v_max(v_set1(-4.2f), x)), y = z * z;
    vf p = v_fma(v_set1(-9.01754338e-10f), y, v_set1(7.94134323e-8f));
    p = v_fma(p, y, v_set1(-3.03793104e-6f));
    p = v_fma(p, y, v_set1(6.68906578e-5f));
    p = v_fma(p, y, v_set1(-9.50656889e-4f));
    p = v_fma(p, y, v_set1(9.29822493e-3f));
    p = v_fma(p, y, v_set1(-6.55281916e-2f));
    p = v_fma(p, y, v_set1(0.398465842f));
    return x * v_fma(z, p, v_set1(0.5f));
}

/* `rough`: to about 1e-4, a fraction of what rounding to bfloat16 or int8 leaves. */
BVL_INLINE vf v_activate(const bvl_activation act, const bool rough, vf x) {
    switch (act) {
        case BVL_ACT_QUICK_GELU: return x * v_sigmoid(rough, v_set1(1.702f) * x);
        case BVL_ACT_GELU: {
            if (rough) return v_rough_gelu(x);
            const vf half = v_set1(0.5f) * x;
            return v_fma(half, v_erf(v_set1(0.70710678f) * x), half);
        }
        case BVL_ACT_GELU_TANH: { /* (1 + tanh u) / 2 = sigmoid(2 u) */
            const vf cubic = v_fma(v_set1(0.044715f) * x, x * x, x);
            return x * v_sigmoid(rough, v_set1(1.5957691f) * cubic);
        }
        case BVL_ACT_RELU: return v_max(v_set1(0.0f), x);
        case BVL_ACT_RELU6: return v_min(v_set1(6.0f), v_max(v_set1(0.0f), x));
        case BVL_ACT_TANH: {
            const vf two = v_set1(2.0f);
            return v_fma(two, v_sigmoid(false, two * x), v_set1(-1.0f));
        }
        case BVL_ACT_SILU: return x * v_sigmoid(rough, x);
        case BVL_ACT_NONE:
        case BVL_ACT_COUNT: break;
    }
    return x;
}

/* Calls LOOP(act) with act a constant, so that v_activate folds to one expression. */
#define BVL_FOR_ACTIVATION(act, LOOP)                             \
    switch (act) {                                                \
        case BVL_ACT_QUICK_GELU: LOOP(BVL_ACT_QUICK_GELU); break; \
        case BVL_ACT_GELU: LOOP(BVL_ACT_GELU); break;             \
        case BVL_ACT_GELU_TANH: LOOP(BVL_ACT_GELU_TANH); break;   \
        case BVL_ACT_RELU: LOOP(BVL_ACT_RELU); break;             \
        case BVL_ACT_RELU6: LOOP(BVL_ACT_RELU6); break;           \
        case BVL_ACT_TANH: LOOP(BVL_ACT_TANH); break;             \
        case BVL_ACT_SILU: LOOP(BVL_ACT_SILU); break;             \
        default: LOOP(BVL_ACT_NONE); break;                       \
    }

#endif
