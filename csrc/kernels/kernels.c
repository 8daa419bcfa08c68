/* kernels.c: every vector kernel except the product, written on vec.h; compiled once per instruction
 * set, and the table of that set. */
#include "kernels.h"

#include "activations.h"
#include "dot.h"
#include "level.h"
#include "vec.h"

#if defined(BVL_LEVEL_AMX)
/* strips that read weights seldom enough, and parts whose inner activations stay in the second cache */
#define STRIP_ROWS 256
#define STRIP_STEP 32
#define INNER_COLUMNS 1024
#define MICRO_BATCH_ROWS 1536
#else
#define STRIP_ROWS 168 /* 64 bytes of weights in as many cycles, from a cache that gives ten a cycle */
#define STRIP_STEP V_MR
#define INNER_COLUMNS 0
#define MICRO_BATCH_ROWS 256
#endif

enum {
    SHORT_ROW = 8,           /* vectors of a row that stay in registers */
    DEPTHWISE_PIXELS = 6,    /* of a line at once */
    DEPTHWISE_CHANNELS = 64, /* whose weights are gone through pixel by pixel */
};

BVL_INLINE vf add_term(vf sum, vf d, const bool squares) {
    if (squares) return v_fma(d, d, sum);
    return sum + d;
}

/* Lanes that add up to the sum of x - m over a row, or of its squares; in four chains, for an addition takes
 * as many cycles. */
BVL_INLINE vf row_sums(const float *x, int64_t D, vf m, const bool squares) {
    const vf zero = v_set1(0.0f);
    vf s[4] = {zero, zero, zero, zero};
    int64_t j = 0;
    for (; j + 4 * V_WIDTH <= D; j += 4 * V_WIDTH)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) s[i] = add_term(s[i], v_load(x + j + i * V_WIDTH) - m, squares);
    for (; j + V_WIDTH <= D; j += V_WIDTH) s[0] = add_term(s[0], v_load(x + j) - m, squares);
    if (j < D) s[1] = add_term(s[1], v_first(v_load_tail(x + j, (int)(D - j)) - m, D - j, zero), squares);
    return (s[0] + s[1]) + (s[2] + s[3]);
}

/* v_sum(x[r]) or v_hmax(x[r]) of one row, in every lane, or of four, in as many parts of a vector: a row
 * takes long to become one number, four not longer. */
BVL_INLINE vf join(BVL_UNUSED const int rows, const bool sums, const vf *x) {
#if defined(V_FOUR)
    if (rows == 4) return sums ? v_sum_four(x) : v_hmax_four(x);
#endif
    return v_set1(sums ? v_sum(x[0]) : v_hmax(x[0]));
}

/* Every lane of x[r] = what `all` holds for row r. */
BVL_INLINE void spread(const int rows, vf all, vf *x) {
#if defined(V_FOUR)
    if (rows == 4) v_spread_four(all, x);
#endif
    if (rows == 1) x[0] = all;
}

/* Elements j to j + V_WIDTH of a row of n; of a bfloat16 row, zeros behind the last ones. */
BVL_INLINE void store_part(float *y, vf x, int64_t j, int64_t n, const bool bf16) {
    if (bf16)
        v_store_bf16((uint16_t *)(void *)y + j, x, V_WIDTH);
    else
        v_store_first(y + j, x, n - j);
}

/* One row or four. */
BVL_INLINE void norm_rows(const bool bf16, const bool centred, const int rows, float *y, int64_t ldy,
                          const float *x, int64_t ldx, const float *gamma, const float *beta, float eps,
                          int64_t D) {
    const vf zero = v_set1(0.0f), each = v_set1(1.0f / (float)D);
    vf m[4] = {zero, zero, zero, zero}, inv[4];
    if (centred) {
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) m[r] = row_sums(x + r * ldx, D, zero, false);
        spread(rows, join(rows, true, m) * each, m);
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) inv[r] = row_sums(x + r * ldx, D, m[r], true);
    spread(rows, v_set1(1.0f) / v_sqrt(v_fma(join(rows, true, inv), each, v_set1(eps))), inv);
    for (int64_t j = 0; j < D; j += V_WIDTH) {
        const vf g = v_load_first(gamma + j, D - j), b = centred ? v_load_first(beta + j, D - j) : zero;
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vf d = (v_load_first(x + r * ldx + j, D - j) - m[r]) * inv[r];
            if (centred)
                d = v_fma(d, g, b);
            else
                d = d * g;
            store_part(y + r * ldy, d, j, D, bf16);
        }
    }
    for (int64_t j = bvl_round_up(D, V_WIDTH); bf16 && j < bvl_round_up(D, 32); j += V_WIDTH)
        for (int r = 0; r < rows; r++) store_part(y + r * ldy, zero, j, D, true);
}

BVL_INLINE void norm_all(const bool bf16, const bool centred, float *y, int64_t ldy, const float *x,
                         int64_t ldx, const float *gamma, const float *beta, float eps, int64_t rows,
                         int64_t D) {
    int64_t r = 0;
#if defined(V_FOUR)
    for (; r + 4 <= rows; r += 4)
        norm_rows(bf16, centred, 4, y + r * ldy, ldy, x + r * ldx, ldx, gamma, beta, eps, D);
#endif
    for (; r < rows; r++)
        norm_rows(bf16, centred, 1, y + r * ldy, ldy, x + r * ldx, ldx, gamma, beta, eps, D);
}

static void norm(float *y, int64_t ldy, const float *x, int64_t ldx, const float *gamma, const float *beta,
                 float eps, int64_t rows, int64_t D, bool bf16) {
#define ROWS(half)                                                       \
    if (beta)                                                            \
        norm_all(half, true, y, ldy, x, ldx, gamma, beta, eps, rows, D); \
    else                                                                 \
        norm_all(half, false, y, ldy, x, ldx, gamma, NULL, eps, rows, D);
    if (BF16_STEP == 2 && bf16) {
        ROWS(true)
    } else {
        ROWS(false)
    }
#undef ROWS
}

/* x * s + bias log2(e) - most for one vector of a row that has n elements left, s = scale log2(e); lowest
 * behind them. */
BVL_INLINE vf score(const bool biased, const float *x, const float *bias, float s, float most, int64_t n) {
    vf offset = v_set1(-most);
    if (biased) offset = v_fma(v_load_first(bias, n), v_set1(V_LOG2E), offset);
    return v_first(v_fma(v_load_first(x, n), v_set1(s), offset), n, v_set1(-INFINITY));
}

/* The shares of a row whose scores are all lowest: zeros, but NaN stays. */
BVL_INLINE void clear_row(const bool bf16, float *y, const float *x, int64_t n) {
    const vf zero = v_set1(0.0f);
    for (int64_t j = 0; j < n; j += V_WIDTH)
        store_part(y, v_min(zero, v_max(zero, v_load_first(x + j, n - j))), j, n, bf16);
}

/* Rows of `count` vectors, which stay in registers; rows and count are constants. False, with nothing stored,
 * where a lone row's scores are all lowest, or where one of four is such a row or not finite. */
BVL_INLINE bool softmax_short(const bool bf16, const bool biased, const int rows, const int count, float *y,
                              int64_t ldy, const float *x, int64_t ldx, int64_t n, float s, const float *bias,
                              int64_t ldb) {
    vf v[4][SHORT_ROW], top[4], sum[4];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < count; c++) {
            const int64_t j = c * V_WIDTH;
            v[r][c] =
                score(biased, x + r * ldx + j, bias + r * ldb + j, s, 0, c + 1 < count ? V_WIDTH : n - j);
            top[r] = c ? v_max(top[r], v[r][c]) : v[r][c];
        }
    spread(rows, join(rows, false, top), top);
    if (rows == 1 && top[0][0] == -INFINITY) return false;
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
        sum[r] = v_set1(0.0f);
#pragma GCC unroll 8
        for (int c = 0; c < count; c++) {
            v[r][c] = v_exp2_below(bf16, v[r][c] - top[r]);
            sum[r] = sum[r] + v[r][c];
        }
    }
    const vf all = join(rows, true, sum);
    if (rows > 1 && v_count_gt(all, v_set1(0.0f)) < V_WIDTH) return false;
    spread(rows, v_inverse(bf16, all), sum);
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int c = 0; c < count; c++)
            store_part(y + r * ldy, v[r][c] * sum[r], c * V_WIDTH, c + 1 < count ? (c + 1) * V_WIDTH : n,
                       bf16);
    return true;
}

/* The largest score of a row, in four chains. */
BVL_INLINE float largest_score(const bool biased, const float *x, int64_t n, float s, const float *bias) {
    const vf lowest = v_set1(-INFINITY);
    vf top[4] = {lowest, lowest, lowest, lowest};
    int64_t j = 0;
    for (; j + 4 * V_WIDTH <= n; j += 4 * V_WIDTH)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const int64_t at = j + i * V_WIDTH;
            top[i] = v_max(top[i], score(biased, x + at, bias + at, s, 0, V_WIDTH));
        }
    for (; j < n; j += V_WIDTH) top[0] = v_max(top[0], score(biased, x + j, bias + j, s, 0, n - j));
    return v_hmax(v_max(v_max(top[0], top[1]), v_max(top[2], top[3])));
}

/* x = 2^(score - most); returns 1 / the sum of those. */
BVL_INLINE vf exponentials(const bool bf16, const bool biased, float *x, int64_t n, float s,
                           const float *bias, float most) {
    vf sum[2] = {v_set1(0.0f), v_set1(0.0f)};
    int64_t j = 0;
    for (; j + 2 * V_WIDTH <= n; j += 2 * V_WIDTH)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const int64_t at = j + i * V_WIDTH;
            const vf v = v_exp2_below(bf16, score(biased, x + at, bias + at, s, most, V_WIDTH));
            v_store(x + at, v);
            sum[i] = sum[i] + v;
        }
    for (; j < n; j += V_WIDTH) {
        const vf v = v_exp2_below(bf16, score(biased, x + j, bias + j, s, most, n - j));
        v_store_first(x + j, v, n - j);
        sum[0] = sum[0] + v;
    }
    return v_inverse(bf16, v_set1(v_sum(sum[0] + sum[1])));
}

/* Rows that do not fit into registers. The next one's largest score is found before this one is stored: its
 * work fills the time that a row's sum takes to become one number. */
BVL_INLINE void softmax_long(const bool bf16, const bool biased, float *y, int64_t ldy, float *x, int64_t ldx,
                             int64_t rows, int64_t n, float s, const float *bias, int64_t ldb) {
    float most = rows > 0 ? largest_score(biased, x, n, s, bias) : 0.0f;
    for (int64_t r = 0; r < rows; r++, y += ldy, x += ldx) {
        const bool lowest = most == -INFINITY;
        vf inv = v_set1(0.0f);
        if (lowest)
            clear_row(bf16, y, x, n);
        else
            inv = exponentials(bf16, biased, x, n, s, bias, most);
        bias += ldb;
        if (r + 1 < rows) most = largest_score(biased, x + ldx, n, s, bias);
        for (int64_t j = 0; j < n && !lowest; j += V_WIDTH)
            store_part(y, v_load_first(x + j, n - j) * inv, j, n, bf16);
    }
}

BVL_INLINE void softmax_short_rows(const bool bf16, const bool biased, const int count, float *y, int64_t ldy,
                                   const float *x, int64_t ldx, int64_t rows, int64_t n, float s,
                                   const float *bias, int64_t ldb) {
    for (int64_t r = 0, step; r < rows; r += step, y += step * ldy, x += step * ldx, bias += step * ldb) {
#if defined(V_FOUR)
        step = 4;
        if (count <= 4 && rows - r >= 4 &&
            softmax_short(bf16, biased, 4, count, y, ldy, x, ldx, n, s, bias, ldb))
            continue;
#endif
        step = 1;
        if (!softmax_short(bf16, biased, 1, count, y, ldy, x, ldx, n, s, bias, ldb)) clear_row(bf16, y, x, n);
    }
}

BVL_INLINE void softmax_rows(const bool bf16, const bool biased, float *y, int64_t ldy, float *x, int64_t ldx,
                             int64_t rows, int64_t n, float s, const float *bias, int64_t ldb) {
#define CASE(count) \
    case count: softmax_short_rows(bf16, biased, count, y, ldy, x, ldx, rows, n, s, bias, ldb); break;
    switch ((n + V_WIDTH - 1) / V_WIDTH) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
        default: softmax_long(bf16, biased, y, ldy, x, ldx, rows, n, s, bias, ldb);
    }
#undef CASE
}

static void softmax(float *y, int64_t ldy, float *x, int64_t ldx, int64_t rows, int64_t n, float scale,
                    const float *bias, int64_t ldb, bool bf16) {
    const float s = scale * V_LOG2E;
#define ROWS(half)                                                       \
    if (bias)                                                            \
        softmax_rows(half, true, y, ldy, x, ldx, rows, n, s, bias, ldb); \
    else                                                                 \
        softmax_rows(half, false, y, ldy, x, ldx, rows, n, s, x /* any */, 0);
    if (BF16_STEP == 2 && bf16) {
        ROWS(true)
    } else {
        ROWS(false)
    }
#undef ROWS
}

static void activate(float *y, const float *x, const float *bias, bvl_activation act, int64_t n) {
#define LOOP(ACT)                                               \
    for (int64_t j = 0; j < n; j += V_WIDTH) {                  \
        vf v = v_load_first(x + j, n - j);                      \
        if (bias) v = v + v_load_first(bias + j, n - j);        \
        v_store_first(y + j, v_activate(ACT, false, v), n - j); \
    }
    BVL_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

static void gate(float *y, const float *x, bvl_activation act, int64_t n) {
#define LOOP(ACT)                            \
    for (int64_t j = 0; j < n; j += V_WIDTH) \
        v_store_first(                       \
            y + j, v_activate(ACT, false, v_load_first(y + j, n - j)) * v_load_first(x + j, n - j), n - j);
    BVL_FOR_ACTIVATION(act, LOOP)
#undef LOOP
}

static void l2_normalize(float *y, const float *x, int64_t n) {
    const float norm = sqrtf(v_sum(row_sums(x, n, v_set1(0.0f), true)));
    const vf inv = v_set1(1.0f / (norm < 1e-12f ? 1e-12f : norm)); /* a row with a NaN is NaN */
    for (int64_t j = 0; j < n; j += V_WIDTH) v_store_first(y + j, v_load_first(x + j, n - j) * inv, n - j);
}

static void add(float *y, const float *x, int64_t n) {
    for (int64_t j = 0; j < n; j += V_WIDTH)
        v_store_first(y + j, v_load_first(y + j, n - j) + v_load_first(x + j, n - j), n - j);
}

static void clamp(float *y, const float *low, const float *high, int64_t n) {
    for (int64_t j = 0; j < n; j += V_WIDTH) {
        const vf v = v_max(v_load_first(low + j, n - j), v_load_first(y + j, n - j));
        v_store_first(y + j, v_min(v_load_first(high + j, n - j), v), n - j);
    }
}

static void dots(float *y, const float *q, const float *x, int64_t ld, int64_t n, int64_t D) {
    for (int64_t i = 0; i < n; i++, x += ld) {
        vf s[2] = {v_set1(0.0f), v_set1(0.0f)};
        int64_t j = 0;
        for (; j + 2 * V_WIDTH <= D; j += 2 * V_WIDTH)
#pragma GCC unroll 2
            for (int c = 0; c < 2; c++)
                s[c] = v_fma(v_load(q + j + c * V_WIDTH), v_load(x + j + c * V_WIDTH), s[c]);
        for (; j < D; j += V_WIDTH)
            s[0] = v_fma(v_load_first(q + j, D - j), v_load_first(x + j, D - j), s[0]);
        y[i] = v_sum(s[0] + s[1]);
    }
}

static void mix(float *y, const float *w, const float *x, int64_t ld, int64_t n, int64_t D) {
    for (int64_t j = 0; j < D; j += V_WIDTH) {
        vf sum = v_set1(0.0f);
        for (int64_t i = 0; i < n; i++) sum = v_fma(v_set1(w[i]), v_load_first(x + i * ld + j, D - j), sum);
        v_store_first(y + j, sum, D - j);
    }
}

static void scale(float *y, float s, int64_t n) {
    const vf v = v_set1(s);
    for (int64_t j = 0; j < n; j += V_WIDTH) v_store_first(y + j, v_load_first(y + j, n - j) * v, n - j);
}

/* Channels [0, n) of `pixels` neighbouring output pixels, a constant, summed over taps [i0, i1) x [j0, j1),
 * which lie inside the picture for all of them. x: the first one's tap (0, 0); n: V_WIDTH or less. */
BVL_INLINE void depthwise_pixels(const int pixels, float *y, const float *x, const float *w,
                                 const float *bias, const bvl_conv_shape *s, const int64_t taps[4], int64_t n,
                                 bool relu6) {
    const int64_t step = s->stride * s->ld_in;
    const vf first = v_load_first(bias, n);
    vf acc[DEPTHWISE_PIXELS];
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++) acc[p] = first;
    for (int64_t i = taps[0]; i < taps[1]; i++) {
        const float *row = x + (i * s->width + taps[2]) * s->ld_in;
        const float *tap = w + (i * s->kernel + taps[2]) * s->channels;
        for (int64_t j = taps[2]; j < taps[3]; j++, row += s->ld_in, tap += s->channels) {
            const vf weight = v_load_first(tap, n);
            const float *at[] = {row, row + 3 * step};
#pragma GCC unroll 6
            for (int p = 0; p < pixels; p++)
                acc[p] = v_fma(v_load_first(at[p / 3] + p % 3 * step, n), weight, acc[p]);
        }
    }
#pragma GCC unroll 6
    for (int p = 0; p < pixels; p++)
        v_store_first(y + p * s->ld_out, relu6 ? v_activate(BVL_ACT_RELU6, false, acc[p]) : acc[p], n);
}

/* Channels [c0, c1) of `pixels` output pixels from (r, q) on. */
BVL_INLINE void depthwise_run(const int pixels, float *y, const float *x, const float *w, const float *bias,
                              const bvl_conv_shape *s, int64_t r, int64_t q, int64_t c0, int64_t c1,
                              bool relu6) {
    const int64_t top = r * s->stride - s->pad_top, left = q * s->stride - s->pad_left;
    const int64_t taps[] = {BVL_MAX(0, -top), BVL_MIN(s->kernel, s->height - top), BVL_MAX(0, -left),
                            BVL_MIN(s->kernel, s->width - left)};
    const int64_t from = (top * s->width + left) * s->ld_in, to = (r * s->out_width + q) * s->ld_out;
    int64_t c = c0;
    for (; c + V_WIDTH <= c1; c += V_WIDTH)
        depthwise_pixels(pixels, y + to + c, x + from + c, w + c, bias + c, s, taps, V_WIDTH, relu6);
    if (c < c1) depthwise_pixels(pixels, y + to + c, x + from + c, w + c, bias + c, s, taps, c1 - c, relu6);
}

/* A few channels at a time, whose weights stay near; pixels between the edges several at once. */
static void depthwise(float *y, const float *x, const float *w, const float *bias, bvl_activation act,
                      const bvl_conv_shape *s, int64_t r0, int64_t r1) {
    const int64_t first = BVL_MIN((s->pad_left + s->stride - 1) / s->stride, s->out_width);
    const int64_t fit =
        s->width + s->pad_left - s->kernel; /* where the last pixel without a right edge begins */
    const int64_t last = fit < 0 ? first : BVL_MAX(first, BVL_MIN(fit / s->stride + 1, s->out_width));
    const bool relu6 = act == BVL_ACT_RELU6;
    for (int64_t r = r0; r < r1; r++) {
        for (int64_t c0 = 0; c0 < s->channels; c0 += DEPTHWISE_CHANNELS) {
            const int64_t c1 = BVL_MIN(c0 + DEPTHWISE_CHANNELS, s->channels);
#define RUN(pixels) depthwise_run(pixels, y, x, w, bias, s, r, q, c0, c1, relu6), q += (pixels)
            for (int64_t q = 0; q < s->out_width;) {
                const int64_t inside = q < first ? 0 : last - q;
                if (inside >= 6)
                    RUN(6);
                else if (inside >= 3)
                    RUN(3);
                else
                    RUN(1);
            }
#undef RUN
        }
        if (relu6 || act == BVL_ACT_NONE) continue;
        for (float *out = y + r * s->out_width * s->ld_out, *end = out + s->out_width * s->ld_out; out < end;
             out += s->ld_out)
            activate(out, out, NULL, act, s->channels);
    }
}

extern const bvl_kernels BVL_NAME(bvl_kernels);
const bvl_kernels BVL_NAME(bvl_kernels) = {
    .isa = BVL_ISA_CODE,
    .mr = V_MR,
    .nr = V_NR,
    .strip_rows = STRIP_ROWS,
    .strip_step = STRIP_STEP,
    .inner_columns = INNER_COLUMNS,
    .micro_batch_rows = MICRO_BATCH_ROWS,
    .bf16_rows = BF16_STEP == 2,
    .product = BVL_NAME(bvl_products),
    .pack_bf16 = BF16_STEP == 2 ? BVL_NAME(bvl_pack_bf16) : NULL,
    .norm = norm,
    .softmax = softmax,
    .activate = activate,
    .gate = gate,
    .l2_normalize = l2_normalize,
    .add = add,
    .clamp = clamp,
    .dots = dots,
    .mix = mix,
    .scale = scale,
    .depthwise = depthwise,
    .resample_pack = BVL_NAME(bvl_resample_pack),
    .resample_horizontal = BVL_NAME(bvl_resample_horizontal),
    .resample_vertical = BVL_NAME(bvl_resample_vertical),
    .mel_lanes = 2 * BVL_DOUBLES,
    .mel_frames = BVL_NAME(bvl_mel_frames),
    .scan = {BVL_NAME(bvl_scan_float32), BVL_NAME(bvl_scan_bfloat16), BVL_NAME(bvl_scan_int8),
             BVL_NAME(bvl_scan_binary)},
    .widen_rows = BVL_NAME(bvl_widen_rows),
};
