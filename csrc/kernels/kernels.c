/* kernels.c: every vector kernel except the product, written on vec.h; compiled once per instruction
 * set, and the table of that set. */
#include "kernels.h"

#include "activations.h"
#include "dot.h"
#include "level.h"
#include "vec.h"

/* The sum of f(x) over a row: full vectors first, then the tail, then across the lanes. */
#define ROW_SUM(total, n, EXPRESSION)                                             \
    do {                                                                          \
        vf sum_ = v_set1(0.0f);                                                   \
        int64_t j = 0;                                                            \
        for (; j + V_WIDTH <= (n); j += V_WIDTH) sum_ = EXPRESSION(v_load, sum_); \
        if (j < (n)) sum_ = EXPRESSION(TAIL_LOAD, sum_);                          \
        (total) = v_sum(sum_);                                                    \
    } while (0)

static void layer_norm(float *y, int64_t ldy, const float *x, int64_t ldx, const float *gamma,
                       const float *beta, float eps, int64_t rows, int64_t D) {
    for (int64_t r = 0; r < rows; r++, x += ldx, y += ldy) {
        float sum, squares;
#define TAIL_LOAD(p) v_load_tail(p, (int)(D - j))
#define PLAIN(LOAD, s) (s + LOAD(x + j))
        ROW_SUM(sum, D, PLAIN);
#undef PLAIN
        const float mean = sum / (float)D;
        const vf m = v_set1(mean);
        vf acc = v_set1(0.0f);
        int64_t j = 0;
        for (; j + V_WIDTH <= D; j += V_WIDTH) {
            const vf d = v_load(x + j) - m;
            acc = v_fma(d, d, acc);
        }
        squares = v_sum(acc);
        for (; j < D; j++) squares += (x[j] - mean) * (x[j] - mean);
#undef TAIL_LOAD
        const vf inv = v_set1(1.0f / sqrtf(squares / (float)D + eps));
        for (j = 0; j < D; j += V_WIDTH) {
            const vf d = (v_load_first(x + j, D - j) - m) * inv;
            v_store_first(y + j, v_fma(d, v_load_first(gamma + j, D - j), v_load_first(beta + j, D - j)),
                          D - j);
        }
    }
}

static void rms_norm(float *y, int64_t ldy, const float *x, int64_t ldx, const float *gamma, float eps,
                     int64_t rows, int64_t D) {
    for (int64_t r = 0; r < rows; r++, x += ldx, y += ldy) {
        vf acc = v_set1(0.0f);
        for (int64_t j = 0; j < D; j += V_WIDTH) {
            const vf v = v_load_first(x + j, D - j);
            acc = v_fma(v, v, acc);
        }
        const vf inv = v_set1(1.0f / sqrtf(v_sum(acc) / (float)D + eps));
        for (int64_t j = 0; j < D; j += V_WIDTH)
            v_store_first(y + j, v_load_first(x + j, D - j) * inv * v_load_first(gamma + j, D - j), D - j);
    }
}

static void softmax(float *x, int64_t n, float scale, const float *bias) {
    const vf s = v_set1(scale), lowest = v_set1(-INFINITY);
    vf top = lowest;
    for (int64_t j = 0; j < n; j += V_WIDTH) {
        vf v = v_load_first(x + j, n - j) * s;
        if (bias) v = v + v_load_first(bias + j, n - j);
        v_store_first(x + j, v, n - j);
        if (n - j >= V_WIDTH) top = v_max(top, v);
    }
    float most = v_hmax(top);
    for (int64_t j = n - n % V_WIDTH; j < n; j++)
        most = x[j] > most || x[j] != x[j] ? x[j] : most; /* NaN stays */
    if (most == -INFINITY) {
        memset(x, 0, (size_t)n * sizeof(float));
        return;
    }
    const vf m = v_set1(most);
    vf sum = v_set1(0.0f);
    int64_t j = 0;
    for (; j + V_WIDTH <= n; j += V_WIDTH) {
        const vf e = v_exp(v_load(x + j) - m);
        v_store(x + j, e);
        sum = sum + e;
    }
    float total = v_sum(sum);
    if (j < n) {
        v_store_tail(x + j, v_exp(v_load_tail(x + j, (int)(n - j)) - m), (int)(n - j));
        for (; j < n; j++) total += x[j];
    }
    const vf inv = v_set1(1.0f / total);
    for (j = 0; j < n; j += V_WIDTH) v_store_first(x + j, v_load_first(x + j, n - j) * inv, n - j);
}

static void activate(float *y, const float *x, const float *bias, bvl_activation act, int64_t n) {
#define LOOP(ACT)                                        \
    for (int64_t j = 0; j < n; j += V_WIDTH) {           \
        vf v = v_load_first(x + j, n - j);               \
        if (bias) v = v + v_load_first(bias + j, n - j); \
        v_store_first(y + j, v_activate(ACT, v), n - j); \
    }
    BVL_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

static void gate(float *y, const float *x, bvl_activation act, int64_t n) {
#define LOOP(ACT)                            \
    for (int64_t j = 0; j < n; j += V_WIDTH) \
        v_store_first(y + j, v_activate(ACT, v_load_first(y + j, n - j)) * v_load_first(x + j, n - j), n - j);
    BVL_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

static void l2_normalize(float *y, const float *x, int64_t n) {
    vf acc = v_set1(0.0f);
    for (int64_t j = 0; j < n; j += V_WIDTH) {
        const vf v = v_load_first(x + j, n - j);
        acc = v_fma(v, v, acc);
    }
    const vf inv = v_set1(1.0f / fmaxf(sqrtf(v_sum(acc)), 1e-12f));
    for (int64_t j = 0; j < n; j += V_WIDTH) v_store_first(y + j, v_load_first(x + j, n - j) * inv, n - j);
}

static void add(float *y, const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j += V_WIDTH)
        v_store_first(y + j, v_load_first(y + j, n - j) + v_load_first(x + j, n - j), n - j);
}

static void scale(float *y, float s, int64_t n) {
    const vf v = v_set1(s);
    for (int64_t j = 0; j < n; j += V_WIDTH) v_store_first(y + j, v_load_first(y + j, n - j) * v, n - j);
}

/* One output pixel: channels [c, c + V_WIDTH) summed over the taps that fall inside the picture. */
BVL_INLINE vf depthwise_pixel(const float *x, const float *w, vf acc, const bvl_conv_shape *s, int64_t top,
                              int64_t left, int64_t n) {
    for (int64_t i = 0; i < s->kernel; i++) {
        if (top + i < 0 || top + i >= s->height) continue;
        const int64_t j0 = BVL_MAX(0, -left), j1 = BVL_MIN(s->kernel, s->width - left);
        const float *row = x + ((top + i) * s->width + left) * s->ld_in;
        const float *tap = w + i * s->kernel * s->channels;
        for (int64_t j = j0; j < j1; j++)
            acc = v_fma(v_load_first(row + j * s->ld_in, n), v_load_first(tap + j * s->channels, n), acc);
    }
    return acc;
}

static void depthwise(float *y, const float *x, const float *w, const float *bias, bvl_activation act,
                      const bvl_conv_shape *s, int64_t r0, int64_t r1) {
    for (int64_t r = r0; r < r1; r++)
        for (int64_t q = 0; q < s->out_width; q++) {
            float *out = y + (r * s->out_width + q) * s->ld_out;
            const int64_t top = r * s->stride - s->pad_top, left = q * s->stride - s->pad_left;
            for (int64_t c = 0; c < s->channels; c += V_WIDTH) {
                const int64_t n = s->channels - c;
                vf acc = depthwise_pixel(x + c, w + c, v_load_first(bias + c, n), s, top, left, n);
                if (act == BVL_ACT_RELU6) acc = v_activate(BVL_ACT_RELU6, acc);
                v_store_first(out + c, acc, n);
            }
            if (act != BVL_ACT_RELU6 && act != BVL_ACT_NONE) activate(out, out, NULL, act, s->channels);
        }
}

extern const bvl_kernels BVL_NAME(bvl_kernels);
const bvl_kernels BVL_NAME(bvl_kernels) = {
    .isa = BVL_ISA_CODE,
    .mr = V_MR,
    .nr = V_NR,
    .bf16_rows = BF16_STEP == 2,
    .product = BVL_NAME(bvl_products),
    .pack_bf16 = BF16_STEP == 2 ? BVL_NAME(bvl_pack_bf16) : NULL,
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .softmax = softmax,
    .activate = activate,
    .gate = gate,
    .l2_normalize = l2_normalize,
    .add = add,
    .scale = scale,
    .depthwise = depthwise,
    .resample_pack = BVL_NAME(bvl_resample_pack),
    .resample_horizontal = BVL_NAME(bvl_resample_horizontal),
    .resample_vertical = BVL_NAME(bvl_resample_vertical),
    .mel_lanes = 2 * BVL_DOUBLES,
    .mel_frames = BVL_NAME(bvl_mel_frames),
};
