/* pack.c: both sides of a product in the form its microkernel reads (dot.h); compiled once per instruction
 * set.
 *
 *   weights      [panel of V_NR columns][word of K][column][k's of the word], once, when a model is loaded
 *   activations  bfloat16: rounded rows. int8: digits = round(x / scale) with one scale per row; elements
 * that would spoil the scale are kept apart as floats: while at most INT8_OUTLIERS are larger than half of
 * the largest one left, those are taken out (Dettmers et al., 2022, keep whole columns apart). Which elements
 * these are depends on the row alone.
 */
#include "dot.h"
#include "level.h"
#include "vec.h"

void BVL_NAME(bvl_pack_float32)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                                int64_t p0, int64_t p1) {
    for (int64_t p = p0; p < p1; p++) {
        float *panel = dst + p * V_NR * K;
        const int64_t n0 = p * V_NR, width = BVL_MIN(V_NR, N - n0);
        if (transposed) {
            for (int64_t k = 0; k < K; k++) {
                memcpy(panel + k * V_NR, w + k * ld + n0, (size_t)width * sizeof(float));
                for (int64_t j = width; j < V_NR; j++) panel[k * V_NR + j] = 0;
            }
            continue;
        }
        /* one cache line of each row at a time: rows a power of two apart share cache sets */
        for (int64_t k0 = 0; k0 < K; k0 += 16) {
            const int64_t k1 = BVL_MIN(k0 + 16, K);
            for (int64_t j = 0; j < width; j++)
                for (int64_t k = k0; k < k1; k++) panel[k * V_NR + j] = w[(n0 + j) * ld + k];
            for (int64_t j = width; j < V_NR; j++)
                for (int64_t k = k0; k < k1; k++) panel[k * V_NR + j] = 0;
        }
    }
}

/* Panel p's weights as [column j][k] floats, one column at a time: W[n, k], or zero past N. */
BVL_INLINE float weight(const float *w, int64_t ld, int64_t N, bool transposed, int64_t n, int64_t k) {
    return n >= N ? 0.0f : transposed ? w[k * ld + n] : w[n * ld + k];
}

/* Weights of one panel as bfloat16; `rest`: what their rounding left, instead. */
static void bfloat16_panel(uint16_t *panel, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                           int64_t n0, bool rest) {
    for (int64_t k0 = 0; k0 < K; k0 += 16)
        for (int64_t j = 0; j < V_NR; j++)
            for (int64_t k = k0; k < BVL_MIN(k0 + 16, K); k++) {
                const float x = weight(w, ld, N, transposed, n0 + j, k);
                const uint16_t lead = bvl_to_bf16(x);
                panel[(k / BF16_STEP * V_NR + j) * BF16_STEP + k % BF16_STEP] =
                    rest ? bvl_to_bf16(x - bvl_from_bf16(lead)) : lead;
            }
}

void BVL_NAME(bvl_pack_bfloat16)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K,
                                 bool transposed, int64_t p0, int64_t p1) {
    const int64_t bytes = panel_bytes(BVL_BFLOAT16, K);
    memset((uint8_t *)dst + p0 * bytes, 0, (size_t)((p1 - p0) * bytes));
    for (int64_t p = p0; p < p1; p++)
        bfloat16_panel((uint16_t *)(void *)((uint8_t *)dst + p * bytes), w, ld, N, K, transposed, p * V_NR,
                       false);
}

void BVL_NAME(bvl_pack_bfloat16x3)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K,
                                   bool transposed, int64_t p0, int64_t p1) {
    const int64_t bytes = panel_bytes(BVL_BFLOAT16X3, K);
    memset((uint8_t *)dst + p0 * bytes, 0, (size_t)((p1 - p0) * bytes));
    for (int64_t p = p0; p < p1; p++)
        for (int rest = 0; rest < 2; rest++)
            bfloat16_panel((uint16_t *)(void *)((uint8_t *)dst + p * bytes + rest * bytes / 2), w, ld, N, K,
                           transposed, p * V_NR, rest);
}

/* One scale per column: the largest weight becomes 127. */
void BVL_NAME(bvl_pack_int8)(float *dst, const float *w, int64_t ld, int64_t N, int64_t K, bool transposed,
                             int64_t p0, int64_t p1) {
    const int64_t bytes = panel_bytes(BVL_INT8, K);
    for (int64_t p = p0; p < p1; p++) {
        uint8_t *panel = (uint8_t *)dst + p * bytes;
        float *scales = (float *)(void *)(panel + bytes) - V_NR;
        memset(panel, 128, (size_t)bytes - 4 * V_NR);
        for (int64_t j = 0; j < V_NR; j++) {
            float most = 0,
                  check = 0; /* check: NaN where a weight is not finite, and then so is the column */
            for (int64_t k = 0; k < K; k++) {
                const float x = weight(w, ld, N, transposed, p * V_NR + j, k);
                most = BVL_MAX(most, fabsf(x));
                check += x * 0.0f;
            }
            scales[j] = most / 127.0f + check;
            const float inverse = most > 0 ? 127.0f / most : 0.0f;
            for (int64_t k = 0; k < K; k++)
                panel[(k / INT8_STEP * V_NR + j) * INT8_STEP + k % INT8_STEP] =
                    (uint8_t)(128 + (int)lrintf(weight(w, ld, N, transposed, p * V_NR + j, k) * inverse));
        }
    }
}

#if BF16_STEP == 2 /* elsewhere attention is float32 */
void BVL_NAME(bvl_pack_bf16)(float *dst, const uint16_t *w, int64_t ld, int64_t N, int64_t K,
                             bool transposed) {
    const int64_t words = k_words(BVL_BFLOAT16, K), pairs = (K + 1) / 2;
    for (int64_t n0 = 0; n0 < N; n0 += V_NR, dst += panel_bytes(BVL_BFLOAT16, K) / 4) {
        uint32_t *panel = (uint32_t *)(void *)dst;
        memset(panel + pairs * V_NR, 0, (size_t)((words - pairs) * V_NR) * sizeof *panel);
        for (int64_t j = 0; j < V_NR; j += V_WIDTH) {
            const int64_t count = BVL_MAX(BVL_MIN(V_WIDTH, N - n0 - j), 0);
            const uint16_t *first = w + (count ? n0 + j : n0) * (transposed ? 1 : ld);
            if (transposed) {
                for (int64_t k = 0; k < K; k += 2)
                    v_store_pairs(panel + k / 2 * V_NR + j, first + k * ld,
                                  k + 1 < K ? first + (k + 1) * ld : NULL, count);
                continue;
            }
            /* a pair of k's is one word of the source; a cache line of each of 16 rows at a time */
            for (int64_t k = 0; k < pairs; k += 16)
                v_transpose(panel + k * V_NR + j, V_NR, first + 2 * k, ld / 2, count, BVL_MIN(16, pairs - k));
        }
    }
}
#endif

void BVL_NAME(bvl_load_bfloat16)(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t rows,
                                 int64_t K) {
    const int64_t words = k_words(BVL_BFLOAT16, K);
    for (int64_t r = 0; r < rows; r++, dst += ldd, x += ldx) {
        uint16_t *y = (uint16_t *)(void *)dst;
        for (int64_t k = 0; k < K; k += V_WIDTH)
            v_store_bf16(y + k, v_load_first(x + k, K - k), BVL_MIN(V_WIDTH, K - k));
        memset(y + K, 0, (size_t)(words * BF16_STEP - K) * 2);
    }
}

void BVL_NAME(bvl_load_bfloat16x3)(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t rows,
                                   int64_t K) {
    const int64_t words = k_words(BVL_BFLOAT16X3, K);
    for (int64_t r = 0; r < rows; r++, dst += ldd, x += ldx) {
        uint16_t *lead = (uint16_t *)(void *)dst, *rest = (uint16_t *)(void *)(dst + words);
        memset(dst, 0, (size_t)words * 8);
        for (int64_t k = 0; k < K; k++) {
            lead[k] = bvl_to_bf16(x[k]);
            rest[k] = bvl_to_bf16(x[k] - bvl_from_bf16(lead[k]));
        }
    }
}

/* The largest size in a row, in two chains; NaN where an element is not finite. */
static float largest(const float *x, int64_t K) {
    const vf zero = v_set1(0.0f);
    vf top[2] = {zero, zero}, low[2] = {zero, zero};
    vf check[2] = {zero, zero}; /* 0, or NaN after an element that is not finite */
    int64_t k = 0;
    for (; k + 2 * V_WIDTH <= K; k += 2 * V_WIDTH)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            const vf v = v_load(x + k + i * V_WIDTH);
            top[i] = v_max(top[i], v);
            low[i] = v_min(low[i], v);
            check[i] = v_fma(v, zero, check[i]);
        }
    for (; k < K; k += V_WIDTH) {
        const vf v = v_load_first(x + k, K - k);
        top[0] = v_max(top[0], v);
        low[0] = v_min(low[0], v);
        check[0] = v_fma(v, zero, check[0]);
    }
    if (!(v_sum(check[0] + check[1]) == 0.0f)) return NAN;
    return v_hmax(v_max(v_max(top[0], top[1]), zero - v_min(low[0], low[1])));
}

/* How many elements exceed limit in size, and the largest of the others; no further than where there are more
 * than INT8_OUTLIERS, as most rows have soon. */
static int64_t count_above(const float *x, int64_t K, float limit, float *rest) {
    const vf bound = v_set1(limit);
    vf most = v_set1(0.0f);
    int64_t count = 0;
    for (int64_t k = 0; k < K; k += V_WIDTH) {
        const vf size = v_abs(v_load_first(x + k, K - k));
        count += v_count_gt(size, bound);
        if (count > INT8_OUTLIERS) return count;
        most = v_max(most, v_select_lt(bound, size, v_set1(0.0f), size));
    }
    *rest = v_hmax(most);
    return count;
}

/* Fills the head's outliers; returns the bound the digits have to cover. A row with NaN or inf gets a scale
 * of that kind, so that its results are NaN as a float's would be. */
static float find_outliers(bvl_int8_head *head, const float *x, int64_t K) {
    float most = largest(x, K), rest = 0;
    head->outliers = 0;
    if (isnan(most)) return most;
    int64_t count = count_above(x, K, most / 2, &rest), taken = 0;
    float limit = most;
    while (count <= INT8_OUTLIERS && rest > 0 && count > taken) {
        taken = count;
        limit = most / 2;
        most = rest;
        count = count_above(x, K, most / 2, &rest);
    }
    if (taken == 0) return most;
    for (int64_t k = 0; k < K; k++)
        if (fabsf(x[k]) > limit) {
            head->index[head->outliers] = (int32_t)k;
            head->value[head->outliers++] = x[k];
        }
    return most;
}

/* The digits of a row, zero for outliers, which are beyond `most` in size; returns their sum. */
BVL_INLINE int32_t store_row(const bool outliers, bvl_digit *y, const float *x, int64_t K, float most) {
    const vf inverse = v_set1(most > 0 ? 127.0f / most : 0.0f);
    vf sum = v_set1(0.0f);
    for (int64_t k = 0; k < K; k += V_WIDTH) {
        vf v = v_load_first(x + k, K - k);
        if (outliers) v = v_select_lt(v_set1(most), v_abs(v), v_set1(0.0f), v);
        if (K - k >= V_WIDTH) {
            sum = v_store_digits(y + k, v * inverse, sum);
        } else {
            bvl_digit last[V_WIDTH];
            sum = v_store_digits(last, v * inverse, sum);
            memcpy(y + k, last, (size_t)(K - k) * sizeof *y);
        }
    }
    return v_sum_int(sum);
}

void BVL_NAME(bvl_load_int8)(float *dst, int64_t ldd, const float *x, int64_t ldx, int64_t rows, int64_t K) {
    const int64_t words = k_words(BVL_INT8, K);
    for (int64_t r = 0; r < rows; r++, dst += ldd, x += ldx) {
        bvl_int8_head *head = (bvl_int8_head *)(void *)dst;
        bvl_digit *y = (bvl_digit *)(void *)(dst + INT8_HEAD);
        const float most = find_outliers(head, x, K);
        head->scale = most / 127.0f;
        head->sum = head->outliers ? store_row(true, y, x, K, most) : store_row(false, y, x, K, most);
        memset(y + K, 0, (size_t)(words * INT8_STEP - K) * sizeof *y);
    }
}
