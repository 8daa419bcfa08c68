/* epilogue.h: a tile's sums on their way into C: int8's become floats, then bias, clipping, activation,
 * residual and rounding (gemm.c has the formulas).
 */
#ifndef BVL_EPILOGUE_H
#define BVL_EPILOGUE_H

#include "activations.h"
#include "dot.h"

typedef struct {
    const float *t; /* [mr, V_NR] */
    int mr;
    int64_t n0, width;    /* its columns */
    const float *a;       /* int8: its operand rows, lda apart, with their heads */
    const uint8_t *panel; /* int8: its weights, */
    const float *scales;  /* and the scales of their columns [V_NR] */
    int64_t lda;
} sums;

BVL_INLINE sums sums_of_panel(const float *t, const uint8_t *w, int64_t bytes, int64_t panel, int64_t N,
                              int64_t lda) {
    const int64_t n0 = panel * V_NR;
    return (sums){.t = t,
                  .n0 = n0,
                  .width = BVL_MIN(V_NR, N - n0),
                  .panel = w,
                  .scales = (const float *)(const void *)(w + bytes) - V_NR,
                  .lda = lda};
}

/* Row i's sums as floats: in int8 they are int32. */
BVL_INLINE void load_row(const bvl_precision p, vf x[2], const sums *s, int i, const vf scales[2]) {
    x[0] = v_load(s->t + i * V_NR);
    x[1] = v_load(s->t + i * V_NR + V_WIDTH);
    if (p != BVL_INT8) return;
    const bvl_int8_head *head = (const bvl_int8_head *)(const void *)(s->a + i * s->lda);
    const vf r = v_set1(head->scale);
    const int32_t offset = (int32_t)(128u * (uint32_t)head->sum); /* rows that are not finite may wrap */
    for (int j = 0; j < 2; j++) x[j] = v_from_int(v_sub_int(x[j], offset)) * r;
    for (int o = 0; o < head->outliers; o++) {
        const int64_t k = head->index[o];
        const uint8_t *w = s->panel + k / INT8_STEP * 2 * w_bytes(BVL_INT8);
        const vf v = v_set1(head->value[o]);
        for (int j = 0; j < 2; j++)
            x[j] = v_fma(v, w_column(w + j * w_bytes(BVL_INT8), (int)(k % INT8_STEP)), x[j]);
    }
    for (int j = 0; j < 2; j++) x[j] = x[j] * scales[j];
}

/* A tile through the epilogue into rows of C; all but the pointers and sizes are constants at each call that
 * is to be fast. */
BVL_INLINE void finish_rows(const bvl_precision p, const bvl_activation act, const bool whole,
                            const bool bf16, float *c, int64_t ldc, const sums *s, const bvl_epilogue *e) {
    const bool rough = p == BVL_BFLOAT16 || p == BVL_INT8;
    const float *bias = e->bias ? e->bias + s->n0 : NULL,
                *residual = e->residual ? e->residual + s->n0 : NULL, *low = e->low ? e->low + s->n0 : NULL,
                *high = e->low ? e->high + s->n0 : NULL;
    const int64_t width = whole ? V_NR : s->width;
    vf b[2] = {v_set1(0.0f), v_set1(0.0f)}, scales[2], x[2];
    for (int j = 0; j < 2; j++) {
        if (bias && j * V_WIDTH < width) b[j] = v_load_first(bias + j * V_WIDTH, width - j * V_WIDTH);
        if (p == BVL_INT8) scales[j] = v_load(s->scales + j * V_WIDTH);
    }
    for (int i = 0; i < s->mr; i++, c += ldc) {
        load_row(p, x, s, i, scales);
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const int64_t n = j * V_WIDTH, left = width - n;
            if (left <= 0) continue;
            vf y = x[j] + b[j];
            if (low) y = v_min(v_load_first(high + n, left), v_max(v_load_first(low + n, left), y));
            y = v_activate(act, rough, y);
            if (residual) y = y + v_load_first(residual + i * e->ldr + n, left);
            if (bf16)
                v_store_bf16((uint16_t *)(void *)c + s->n0 + n, y, left);
            else
                v_store_first(c + s->n0 + n, y, left);
        }
    }
}

BVL_INLINE void finish_tile(const bvl_precision p, float *c, int64_t ldc, const sums *s,
                            const bvl_epilogue *e) {
#define WHOLE(act) finish_rows(p, act, true, false, c, ldc, s, e)
#define WHOLE_BF16(act) finish_rows(p, act, true, true, c, ldc, s, e)
#define PART(act) finish_rows(p, act, false, e->bf16, c, ldc, s, e)
    if (s->width < V_NR) {
        BVL_FOR_ACTIVATION(e->act, PART)
    } else if (BF16_STEP == 2 && e->bf16) {
        BVL_FOR_ACTIVATION(e->act, WHOLE_BF16)
    } else {
        BVL_FOR_ACTIVATION(e->act, WHOLE)
    }
#undef WHOLE
#undef WHOLE_BF16
#undef PART
}

/* finish_tile of one precision, as a function of its own: within the loops of a product it loses registers.
 */
typedef void (*finish_function)(float *c, int64_t ldc, const sums *s, const bvl_epilogue *e);

#endif
