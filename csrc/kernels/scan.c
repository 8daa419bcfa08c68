/* scan.c: products of many rows with one query, a row at a time: what a search does whose bound is memory.
 *
 *   float32, bfloat16   scores[i] = sum_d rows[i, d] query[d], the query in float32
 *   int8                the same in whole numbers, the query in int16 below 2^12: below 2^31 for D up to 4096
 *   binary              rows and query of 1 and -1 by their signs' bits, over D: 1 - 2 (bits that differ) / D
 *
 * The order of a sum is fixed by D. Nothing is read past the end of the rows, which may be a mapped file.
 * Compiled once per instruction set.
 */
#include "level.h"

#include "vec.h"

#define SUMS 4 /* that a row is added up in at once, so that additions do not wait for each other */

BVL_INLINE vf load_row(const bvl_row_form p, const void *row, int64_t d) {
    return p == BVL_ROWS_FLOAT32 ? v_load((const float *)row + d) : v_load_bf16((const uint16_t *)row + d);
}

BVL_INLINE float product_of(const bvl_row_form p, const void *row, const float *query, int64_t D) {
    vf s[SUMS];
    int64_t d = 0;
    for (int i = 0; i < SUMS; i++) s[i] = v_set1(0.0f);
    for (; d + SUMS * V_WIDTH <= D; d += SUMS * V_WIDTH)
#pragma GCC unroll 4
        for (int i = 0; i < SUMS; i++)
            s[i] = v_fma(load_row(p, row, d + i * V_WIDTH), v_load(query + d + i * V_WIDTH), s[i]);
    for (; d + V_WIDTH <= D; d += V_WIDTH) s[0] = v_fma(load_row(p, row, d), v_load(query + d), s[0]);
    float sum = v_sum((s[0] + s[1]) + (s[2] + s[3]));
    for (; d < D; d++) {
        const float x =
            p == BVL_ROWS_FLOAT32 ? ((const float *)row)[d] : bvl_from_bf16(((const uint16_t *)row)[d]);
        sum += x * query[d];
    }
    return sum;
}

void BVL_NAME(bvl_scan_float32)(float *scores, const void *rows, int64_t n, int64_t D, const void *query) {
    for (int64_t i = 0; i < n; i++)
        scores[i] = product_of(BVL_ROWS_FLOAT32, (const float *)rows + i * D, query, D);
}

void BVL_NAME(bvl_scan_bfloat16)(float *scores, const void *rows, int64_t n, int64_t D, const void *query) {
    for (int64_t i = 0; i < n; i++)
        scores[i] = product_of(BVL_ROWS_BFLOAT16, (const uint16_t *)rows + i * D, query, D);
}

void BVL_NAME(bvl_scan_int8)(float *scores, const void *rows, int64_t n, int64_t D, const void *query) {
    const int16_t *q = query;
    for (int64_t i = 0; i < n; i++) {
        const int8_t *row = (const int8_t *)rows + i * D;
        int32_t sum = 0;
        for (int64_t d = 0; d < D; d++) sum += row[d] * q[d];
        scores[i] = (float)sum;
    }
}

void BVL_NAME(bvl_scan_binary)(float *scores, const void *rows, int64_t n, int64_t D, const void *query) {
    const uint8_t *row = rows, *q = query;
    const int64_t bytes = (D + 7) / 8;
    const float step = 1.0f / (float)D;
    for (int64_t i = 0; i < n; i++, row += bytes) {
        int64_t differ = 0, at = 0;
        for (; at + 8 <= bytes; at += 8) {
            uint64_t a, b;
            memcpy(&a, row + at, sizeof a);
            memcpy(&b, q + at, sizeof b);
            differ += __builtin_popcountll(a ^ b);
        }
        for (; at < bytes; at++) differ += __builtin_popcount(row[at] ^ q[at]);
        scores[i] = (float)(D - 2 * differ) * step;
    }
}

void BVL_NAME(bvl_widen_rows)(float *y, const void *rows, bvl_row_form form, const float *scales, int64_t n,
                              int64_t D) {
    if (form == BVL_ROWS_BFLOAT16) {
        for (int64_t i = 0; i < n * D; i++) y[i] = bvl_from_bf16(((const uint16_t *)rows)[i]);
        return;
    }
    for (int64_t i = 0; i < n; i++, y += D) {
        const int8_t *row = (const int8_t *)rows + i * D;
        const float scale = scales[i];
        for (int64_t d = 0; d < D; d++) y[d] = (float)row[d] * scale;
    }
}
