/* kernels.h: the table of kernels; one table per instruction set, all with the same meaning.
 *
 * Every kernel computes a row from that row alone, in an order that its length fixes, so results do
 * not depend on the batch or on the number of threads. Kernels cannot fail and allocate nothing.
 */
#ifndef BVL_KERNELS_H
#define BVL_KERNELS_H

#include <string.h>

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
 * C = act(clamp(A W^T + bias)) + residual. residual may be C itself; with a residual, act is
 * none and nothing is clipped. */
typedef struct {
    const float *bias;     /* [N] or NULL */
    const float *residual; /* [M, N], rows ldr apart, or NULL */
    int64_t ldr;
    bvl_activation act;
    bool bf16;               /* C is written as rows of bfloat16; only where the level's bf16_rows is set */
    const float *low, *high; /* [N] between which the sums with their bias are kept, or NULL */
} bvl_epilogue;

/* What a product's weights are stored as; the names are exported to Python as _C.PRECISIONS. */
typedef enum {
    BVL_FLOAT32 = 0,
    BVL_BFLOAT16,
    BVL_INT8,
    BVL_BFLOAT16X3, /* float32 as the sum of two bfloat16 on each side, three products; AMX alone */
    BVL_PRECISION_COUNT
} bvl_precision;

extern const char *const bvl_precision_names[BVL_PRECISION_COUNT];

/* The kernels of a product in one precision at one level.
 *
 * Rows of activations are read in the level's own form, the operand: float32, bfloat16 or scaled integers. An
 * operand row is a number of 32-bit words, so pointers to it are float pointers and strides count words; its
 * K is padded with zeros to whole words (AMX: to 16 of them). */
typedef struct {
    /* 32-bit words of a packed weight, and of one operand row */
    int64_t (*packed_words)(int64_t N, int64_t K);
    int64_t (*operand_words)(int64_t K);
    /* panels [p0, p1) of W [N, K] (rows ld apart; `transposed`: given as [K, N]) -> dst, columns past N zero
     */
    void (*pack)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed, int64_t p0,
                 int64_t p1);
    /* `rows` operand rows from float32 rows; NULL where the operand is float32 */
    void (*load)(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t rows, int64_t K);
    /* C[M, panels p0..p1) = epilogue(A[M, K] x packed^T); columns past N are not written */
    void (*gemm)(float *c, int64_t ldc, const float *a, int64_t lda, const float *packed, int64_t M,
                 int64_t N, int64_t K, int64_t p0, int64_t p1, const bvl_epilogue *epilogue);
} bvl_product;

/* What rows that are searched are kept as: binary are signs, bit 7 of byte 0 first. */
typedef enum {
    BVL_ROWS_FLOAT32 = 0,
    BVL_ROWS_BFLOAT16,
    BVL_ROWS_INT8,
    BVL_ROWS_BINARY,
    BVL_ROWS_COUNT
} bvl_row_form;

/* One depthwise convolution: [height, width, channels] -> [out_height, out_width, channels]. */
typedef struct {
    int64_t channels, height, width, out_height, out_width, kernel, stride, pad_top, pad_left;
    int64_t ld_in, ld_out; /* floats between two pixels */
} bvl_conv_shape;

enum { BVL_RESAMPLE_BITS = 22 }; /* fraction bits of a resampling weight: 32 - 8 - 2 */

/* The taps of output samples along one axis of a picture, in groups of four. */
typedef struct {
    int32_t *words;  /* [count, groups, 4], made by resample_pack */
    int64_t *begin;  /* [count] first input sample */
    int64_t *length; /* [count] input samples used */
    int64_t groups;
} bvl_taps;

enum { BVL_MEL_PASSES = 32, BVL_MEL_LANES = 16 };

/* How frames of a sound become mel energies (spectrum.c); every number of it is checked where it is made. */
typedef struct {
    int64_t length, frame; /* of the transform, and samples of a frame, at most as many */
    int passes, radix[BVL_MEL_PASSES];
    double *turns;  /* [length, 2] exp(-2 pi i n / length) */
    double *window; /* [frame] */
    bool remove_mean;
    double emphasis; /* x[n] - emphasis x[n - 1] */
    int64_t mels;
    int64_t *begin, *count; /* [mels] bins each filter covers */
    double *weights;        /* of those, one filter after the other */
    double floor, scale;    /* scale * log(max(energy, floor)) */
    bool amplitudes;        /* scale * log(sum of amplitudes + floor) instead */
} bvl_mel;

typedef struct {
    bvl_isa isa;
    int mr, nr;           /* float32 microkernel tile; weights are packed in panels of nr columns */
    int strip_rows;       /* of a product, for which reading its weights is little beside computing */
    int strip_step;       /* a strip has a multiple of these rows: whole tiles */
    int inner_columns;    /* of a part of a feed-forward, so that its rows stay near; 0: no parts */
    int micro_batch_rows; /* that a worker takes through a program at once, strip by strip */
    bool bf16_rows; /* bfloat16 is native: its operand is a plain bfloat16 row, and epilogues write such */

    const bvl_product *product; /* [BVL_PRECISION_COUNT] */
    /* W [N, K] of bfloat16 (rows ld apart; `transposed`: [K, N]) packed as the weights of a bfloat16 product;
     * not transposed, K and ld must be even. NULL unless bf16_rows */
    void (*pack_bf16)(float *dst, const uint16_t *w, int64_t ld, int64_t N, int64_t K, bool transposed);
    /* y = (x - mean) / sqrt(var + eps) * gamma + beta over each of `rows` rows of D; beta NULL:
     * x / sqrt(mean(x^2) + eps) * gamma. y may be x, then ldy = ldx. bf16: y is written as bfloat16, then
     * zeros up to a whole cache line; only where bf16_rows is set */
    void (*norm)(float *y, int64_t ldy, const float *x, int64_t ldx, const float *gamma, const float *beta,
                 float eps, int64_t rows, int64_t D, bool bf16);
    /* y = softmax(x * scale + bias) over each of `rows` rows of n; x is overwritten; y may be x, then
     * ldy = ldx. bias: rows ldb apart, above -1e38 or -inf, or NULL; zeros where all is -inf. bf16: y is
     * written as bfloat16, then zeros up to whole vectors; only where bf16_rows is set */
    void (*softmax)(float *y, int64_t ldy, float *x, int64_t ldx, int64_t rows, int64_t n, float scale,
                    const float *bias, int64_t ldb, bool bf16);
    /* y = act(x + bias); bias may be NULL */
    void (*activate)(float *y, const float *x, const float *bias, bvl_activation act, int64_t n);
    /* y = act(y) * x */
    void (*gate)(float *y, const float *x, bvl_activation act, int64_t n);
    /* y = x / max(|x|, 1e-12) */
    void (*l2_normalize)(float *y, const float *x, int64_t n);
    /* y += x */
    void (*add)(float *y, const float *x, int64_t n);
    /* y = min(high, max(low, y)), element by element; NaN stays */
    void (*clamp)(float *y, const float *low, const float *high, int64_t n);
    /* y[i] = q[D] . x[i] over n rows of x, ld apart, which may be below 0 */
    void (*dots)(float *y, const float *q, const float *x, int64_t ld, int64_t n, int64_t D);
    /* y[D] = sum of w[i] x[i] over such rows */
    void (*mix)(float *y, const float *w, const float *x, int64_t ld, int64_t n, int64_t D);
    /* y *= s */
    void (*scale)(float *y, float s, int64_t n);
    /* output rows [r0, r1) of a depthwise convolution, w [kernel * kernel, channels] */
    void (*depthwise)(float *y, const float *x, const float *w, const float *bias, bvl_activation act,
                      const bvl_conv_shape *shape, int64_t r0, int64_t r1);
    /* Pillow's 8-bit resampling (resample.c). Four weights as the four words the level multiplies by */
    void (*resample_pack)(int32_t *words, const int32_t *weights);
    /* `rows` lines at once; up to 16 bytes past a line's last tap are read */
    void (*resample_horizontal)(uint8_t *y, int64_t ldy, const uint8_t *x, int64_t ldx, int64_t rows,
                                const bvl_taps *taps, int64_t count, int64_t channels);
    /* one line of n bytes from 4 * groups lines; those past the last tap may be any */
    void (*resample_vertical)(uint8_t *y, const uint8_t *const *rows, const int32_t *words, int64_t groups,
                              int64_t n);
    /* out[i][m * step] of mel_lanes frames at once, neighbours sharing a transform and its rounding, 16 at
     * most; those without an out[i] are read and left. scratch: aligned, (5 * length + 2) * mel_lanes / 2
     * doubles */
    int mel_lanes;
    void (*mel_frames)(float *const *out, int64_t step, const float *const *frames, const bvl_mel *mel,
                       double *scratch);
    /* scores[i] = rows[i, D] . query over n rows of each form (scan.c) */
    void (*scan[BVL_ROWS_COUNT])(float *scores, const void *rows, int64_t n, int64_t D, const void *query);
    /* y[n, D] = bfloat16 or int8 rows as float32; scales [n] of int8 ones */
    void (*widen_rows)(float *y, const void *rows, bvl_row_form form, const float *scales, int64_t n,
                       int64_t D);
} bvl_kernels;

/* Whether a level was built and this machine has it. */
bool bvl_kernels_usable(bvl_isa isa);
/* The level chosen when none is forced. */
bvl_isa bvl_kernels_best(void);
/* The level in use: the best one, or a lower one forced by BEYONDVL_ISA or bvl_kernels_select. */
const bvl_kernels *bvl_kernels_active(void);
/* Why that level: "detected" or "BEYONDVL_ISA" or "set_isa". */
const char *bvl_kernels_reason(void);
/* name NULL: reads BEYONDVL_ISA. Unknown names and levels this machine lacks are refused. */
bvl_status bvl_kernels_select(const char *name, bvl_error *err);

/* To the nearest, ties to even; NaN stays NaN. */
BVL_INLINE uint16_t bvl_to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 64 : rounded);
}

BVL_INLINE float bvl_from_bf16(uint16_t x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, sizeof y);
    return y;
}

BVL_INLINE int64_t bvl_panels(const bvl_kernels *k, int64_t N) {
    return (N + k->nr - 1) / k->nr;
}

#endif
