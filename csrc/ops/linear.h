/* linear.h: y = act(x W^T + b) + residual, with W packed when the model is loaded. */
#ifndef BVL_LINEAR_H
#define BVL_LINEAR_H

#include "../kernels/kernels.h"
#include "../parallel.h"

typedef struct {
    float *packed; /* W [N, K] in the kernel table's layout */
    float *bias;   /* [N] or NULL */
    int64_t N, K;
} bvl_linear;

/* Packs weight [N, K] (or [N, ...] flattened to K) and copies bias, on nt threads. */
bvl_status bvl_linear_init(bvl_linear *linear, const bvl_kernels *kernels, const bvl_array *weight,
                           const bvl_array *bias, int nt, bvl_error *err);
void bvl_linear_free(bvl_linear *linear);
int64_t bvl_linear_bytes(const bvl_linear *linear, const bvl_kernels *kernels);

/* This worker's share of y[M, N] (rows ldy apart) from x[M, K]; no barrier. residual may be y. */
void bvl_linear_run(const bvl_linear *linear, const bvl_kernels *kernels, float *y, int64_t ldy,
                    const float *x, int64_t ldx, int64_t M, bvl_activation act, const float *residual,
                    int64_t ldr, bvl_team team);

/* A copy of a one-dimensional parameter, through the core's allocator. */
bvl_status bvl_copy_vector(float **out, const bvl_array *source, bvl_error *err);

#endif
