/* dot.h: one step of a product in each precision: V_WIDTH columns of W times one 32-bit word of an operand
 * row.
 *
 *              word of the operand              weights of one column and word
 *   float32    one float                        one float
 *   bfloat16   native: two bfloat16; else one   the same number of bfloat16
 *              float
 *   int8       VNNI: four int8; else two int16  as many bytes, 128 added: the products are u8 x s8
 *   bfloat16x3 as bfloat16; rows and panels hold the leading parts, then as many words of the rests;
 *              an infinite operand gives NaN
 *
 * Accumulators are vf in all; for int8 their bits are int32. The constant 128 is taken off at the end,
 * by means of the row's sum that the operand carries.
 */
#ifndef BVL_DOT_H
#define BVL_DOT_H

#include "kernels.h"
#include "vec.h"

#if defined(__AVX512BF16__)
#define BF16_STEP 2 /* k's in a word */
#else
#define BF16_STEP 1
/* so that code compiles which only runs where bfloat16 is native */
BVL_INLINE vf v_dot_bf16(vf acc, vf w, vf x) {
    (void)w, (void)x;
    return acc;
}
BVL_INLINE void v_store_bf16(uint16_t *p, vf x, int64_t n) {
    (void)p, (void)x, (void)n;
}
#endif
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define INT8_STEP 4
typedef int8_t bvl_digit; /* an element of an int8 operand */
#else
#define INT8_STEP 2
typedef int16_t bvl_digit;
#endif
#if defined(BVL_LEVEL_AMX)
#define WORD_ALIGN 16 /* a tile's row */
#else
#define WORD_ALIGN 1
#endif

enum { INT8_OUTLIERS = 6, INT8_HEAD = 16 }; /* words of the head: one cache line */

/* The head of an int8 operand row: x = scale * digit, but for the outliers, whose digits are zero. */
typedef struct {
    float scale;
    int32_t sum; /* of the digits */
    int32_t outliers;
    int32_t index[INT8_OUTLIERS];
    float value[INT8_OUTLIERS];
    int32_t unused;
} bvl_int8_head;

_Static_assert(sizeof(bvl_int8_head) == INT8_HEAD * 4, "the head of an int8 row is one cache line");

BVL_INLINE int64_t k_step(const bvl_precision p) {
    return p == BVL_FLOAT32 ? 1 : p == BVL_INT8 ? INT8_STEP : BF16_STEP;
}

/* Words of K values, without a head; float32 operands are never padded. */
BVL_INLINE int64_t k_words(const bvl_precision p, int64_t K) {
    const int64_t step = k_step(p), words = (K + step - 1) / step;
    return p == BVL_FLOAT32 ? words : bvl_round_up(words, WORD_ALIGN);
}

/* Bytes of one word's weights for V_WIDTH columns. */
BVL_INLINE int64_t w_bytes(const bvl_precision p) {
    return V_WIDTH * (p == BVL_FLOAT32 ? 4 : p == BVL_INT8 ? INT8_STEP : 2 * BF16_STEP);
}

/* Bytes of a panel; int8 panels end with the scales of their columns. */
BVL_INLINE int64_t panel_bytes(const bvl_precision p, int64_t K) {
    const int64_t bytes = k_words(p, K) * 2 * w_bytes(p);
    return p == BVL_BFLOAT16X3 ? 2 * bytes : bytes + (p == BVL_INT8 ? 4 * V_NR : 0);
}

BVL_INLINE vf load_w(const bvl_precision p, const uint8_t *w) {
    if (p == BVL_BFLOAT16 && BF16_STEP == 1) return v_load_bf16((const uint16_t *)(const void *)w);
    if (p == BVL_INT8 && INT8_STEP == 2) return v_load_u8_pairs(w);
    return v_load((const float *)(const void *)w);
}

BVL_INLINE vf dot(const bvl_precision p, vf acc, vf w, vf x) {
    if (p == BVL_BFLOAT16 && BF16_STEP == 2) return v_dot_bf16(acc, w, x);
    if (p == BVL_INT8) return v_dot_int8(acc, w, x);
    return v_fma(x, w, acc);
}

/* Column k of a panel's int8 weights as floats, V_WIDTH of them; w is where the word's weights begin. */
BVL_INLINE vf w_column(const uint8_t *w, int lane) {
    return v_u8_lane(w, lane) - v_set1(128.0f);
}

#endif
