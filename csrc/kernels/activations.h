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

#if defined(V_TABLE)
/* x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) + e(|x|), largest error 9.1e-5: in each of 15 ranges up to 4.1, the
 * quadratic that comes closest to e, and 0 beyond. A third of the polynomial's multiplications. */
BVL_INLINE vf v_rough_gelu(vf x) {
    static const float e[3][V_TABLE] __attribute__((aligned(64))) = {
        {0.00000000e+00f, -1.03054917e-03f, -1.65986083e-02f, -7.03303665e-02f, -1.69441879e-01f,
         -2.90061593e-01f, -3.88870537e-01f, -4.29924428e-01f, -4.03860927e-01f, -3.28943014e-01f,
         -2.35390544e-01f, -1.49409905e-01f, -8.47128183e-02f, -4.31328118e-02f, -1.98294260e-02f, 0.0f},
        {-4.99871761e-01f, -4.88680720e-01f, -4.17657316e-01f, -2.66547501e-01f, -6.58015758e-02f,
         1.25036716e-01f, 2.53485084e-01f, 2.99192339e-01f, 2.75163114e-01f, 2.12969333e-01f, 1.43234372e-01f,
         8.51593763e-02f, 4.52262536e-02f, 2.16021296e-02f, 9.33765899e-03f, 0.0f},
        {3.96807581e-01f, 3.66615444e-01f, 2.84964174e-01f, 1.78378791e-01f, 7.65584111e-02f, 1.00078573e-03f,
         -4.07682024e-02f, -5.34905717e-02f, -4.79534157e-02f, -3.50422487e-02f, -2.20440309e-02f,
         -1.22356731e-02f, -6.07276568e-03f, -2.71678856e-03f, -1.10294612e-03f, 0.0f},
    };
    const vf z = v_min(v_set1(4.2f), v_abs(x));
    const vf range = v_fma(z, v_set1(3.53658537f), v_set1(12582912.0f)); /* whole: its last bits */
    const vf p = v_fma(v_lookup(e[2], range), z, v_lookup(e[1], range));
    return v_max(v_set1(0.0f), x) + v_fma(p, z, v_lookup(e[0], range));
}
#else
/* x (1 + erf(x / sqrt 2)) / 2, largest error 8.2e-5: what the factor differs from 1/2 by is the odd
 * polynomial of degree 15 that comes closest, exact from 4.2 on. */
BVL_INLINE vf v_rough_gelu(vf x) {
    const vf low = v_max(v_set1(-4.2f), x), z = v_min(v_set1(4.2f), low), y = z * z;
    vf p = v_fma(v_set1(-9.01754338e-10f), y, v_set1(7.94134323e-8f));
    p = v_fma(p, y, v_set1(-3.03793104e-6f));
    p = v_fma(p, y, v_set1(6.68906578e-5f));
    p = v_fma(p, y, v_set1(-9.50656889e-4f));
    p = v_fma(p, y, v_set1(9.29822493e-3f));
    p = v_fma(p, y, v_set1(-6.55281916e-2f));
    p = v_fma(p, y, v_set1(0.398465842f));
    return low * v_fma(z, p, v_set1(0.5f));
}
#endif

/* `rough`: to about 1e-4, a fraction of what rounding to bfloat16 or int8 leaves. */
BVL_INLINE vf v_activate(const bvl_activation act, const bool rough, vf x) {
    switch (act) {
        case BVL_ACT_QUICK_GELU: return x * v_sigmoid(rough, x, 1.702f);
        case BVL_ACT_GELU: {
            if (rough) return v_rough_gelu(x);
            const vf half = v_set1(0.5f) * x;
            return v_fma(half, v_erf(v_set1(0.70710678f) * x), half);
        }
        case BVL_ACT_GELU_TANH: { /* (1 + tanh u) / 2 = sigmoid(2 u) */
            const vf cubic = v_fma(v_set1(0.044715f) * x, x * x, x);
            return x * v_sigmoid(rough, cubic, 1.5957691f);
        }
        case BVL_ACT_RELU: return v_max(v_set1(0.0f), x);
        case BVL_ACT_RELU6: return v_min(v_set1(6.0f), v_max(v_set1(0.0f), x));
        case BVL_ACT_TANH: {
            return v_fma(v_set1(2.0f), v_sigmoid(false, x, 2.0f), v_set1(-1.0f));
        }
        case BVL_ACT_SILU: return x * v_sigmoid(rough, x, 1.0f);
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
