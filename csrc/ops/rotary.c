/* rotary.c: x[i], x[i + half] = x[i] cos - x[i + half] sin, x[i + half] cos + x[i] sin, in float32. */
#include "rotary.h"

#include <math.h>

#include "../kernels/kernels.h"

void bvl_rotary_turn(float *turn, const int64_t *positions, int64_t axes, const float *frequencies,
                     int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float angle = (float)positions[0] * frequencies[i];
        for (int64_t a = 1; a < axes; a++) angle += (float)positions[a] * frequencies[a * half + i];
        turn[i] = cosf(angle);
        turn[half + i] = sinf(angle);
    }
}

static void rotate_float32(float *x, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[half + i];
        x[i] = a * turn[i] - b * turn[half + i];
        x[half + i] = b * turn[i] + a * turn[half + i];
    }
}

static void rotate_bfloat16(uint16_t *x, const float *turn, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float a = bvl_from_bf16(x[i]), b = bvl_from_bf16(x[half + i]);
        x[i] = bvl_to_bf16(a * turn[i] - b * turn[half + i]);
        x[half + i] = bvl_to_bf16(b * turn[i] + a * turn[half + i]);
    }
}

void bvl_rotary_run(float *row, bool bf16, int64_t heads, int64_t hd, const float *turn, int64_t half) {
    for (int64_t h = 0; h < heads; h++)
        if (bf16)
            rotate_bfloat16((uint16_t *)(void *)row + h * hd, turn, half);
        else
            rotate_float32(row + h * hd, turn, half);
}
