/* kernels.h: the table of kernels; one table per instruction set, all with the same meaning.
 *
 * Every kernel computes a row from that row alone, in an order that its length fixes, so results do
 * not depend on the batch or on the number of threads. Kernels cannot fail and allocate nothing.
 */
#ifndef BVL_KERNELS_H
#define BVL_KERNELS_H

#include "../core.h"
#include "../cpu.h"

/* Activations; the names are exported to Python as _C.ACTIVATIONS. */
typedef enum {
    BVL_ACT_NONE = 0,
    BVL_ACT_QUICK_GELU, /* x sigmoid(1.702 x) */
    BVL_ACT_GELU,       /* x (1 + erf(x / sqrt 2)) / 2 */
    BVL_ACT_GELU_TANH,  /* x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2 */
    BVL_ACT_RELU,
    BVL_ACT_RELU6,
    BVL_ACT_TANH,
    BVL_ACT_SILU, /* x sigmoid(x) */
    BVL_ACT_COUNT
} bvl_activation;

extern const char *const bvl_activation_names[BVL_ACT_COUNT];

/* What happens to a tile of a product before it is written:
 * C = act(A W^T + bias) + residual. residual may be C itself; with a residual, act is none. */
typedef struct {
    const float *bias;     /* [N] or NULL */
    const float *residual; /* [M, N], rows ldr apart, or NULL */
    int64_t ldr;
    bvl_activation act;
} bvl_epilogue;

/* One depthwise convolution: [height, width, channels] -> [out_height, out_width, channels]. */
typedef struct {
    int64_t channels, height, width, out_height, out_width, kernel, stride, pad_top, pad_left;
    int64_t ld_in, ld_out; /* floats between two pixels */
} bvl_conv_shape;

typedef struct {
    bvl_isa isa;
    int mr, nr; /* microkernel tile; weights are packed in panels of nr columns */

    /* panels [p0, p1) of W [N, K] (rows ld apart; `transposed`: given as [K, N]) -> dst, laid out
     * [panel][K][nr], columns past N zero */
    void (*gemm_pack)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                      int64_t p0, int64_t p1);
    /* C[M, panels p0..p1) = epilogue(A[M, K] x packed^T); columns past N are not written */
    void (*gemm)(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed, int64_t M,
                 int64_t N, int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue);
    /* y = (x - mean) / sqrt(var + eps) * gamma + beta over each of `rows` rows of D; y may be x */
    void (*layer_norm)(float *y, int64_t ldy, const float *x, int64_t ldx, const float *gamma,
                       const float *beta, float eps, int64_t rows, int64_t D);
    /* x = softmax(x * scale + bias) in place; bias[n] is 0 or -inf, or NULL; zeros if all is -inf */
    void (*softmax)(float *x, int64_t n, float scale, const float *bias);
    /* y = act(x + bias); bias may be NULL */
    void (*activate)(float *y, const float *x, const float *bias, bvl_activation act, int64_t n);
    /* y = x / max(|x|, 1e-12) */
    void (*l2_normalize)(float *y, const float *x, int64_t n);
    /* y += x */
    void (*add)(float *y, const float *x, int64_t n);
    /* y *= s */
    void (*scale)(float *y, float s, int64_t n);
    /* output rows [r0, r1) of a depthwise convolution, w [kernel * kernel, channels] */
    void (*depthwise)(float *y, const float *x, const float *w, const float *bias, bvl_activation act,
                      const bvl_conv_shape *shape, int64_t r0, int64_t r1);
    /* one row of Pillow's 8-bit resampling; see image/resize.c */
    void (*resample_vertical)(uint8_t *y, const uint8_t *const *rows, const int32_t *weights, int64_t taps,
                              int64_t n);
} bvl_kernels;

/* The table of a level, or NULL when it was not built; dispatch.c. */
const bvl_kernels *bvl_kernels_for(bvl_isa isa);
/* The level in use: the best one, or a lower one forced by BEYONDVL_ISA or bvl_kernels_select. */
const bvl_kernels *bvl_kernels_active(void);
/* Why that level: "detected" or "BEYONDVL_ISA" or "set_isa". */
const char *bvl_kernels_reason(void);
/* name NULL: reads BEYONDVL_ISA. Unknown names and levels this machine lacks are refused. */
bvl_status bvl_kernels_select(const char *name, bvl_error *err);

BVL_INLINE int64_t bvl_panels(const bvl_kernels *k, int64_t N) {
    return (N + k->nr - 1) / k->nr;
}
/* floats of a packed weight */
BVL_INLINE int64_t bvl_packed_size(const bvl_kernels *k, int64_t N, int64_t K) {
    return bvl_panels(k, N) * k->nr * K;
}

#endif
