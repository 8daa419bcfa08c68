/* linear.c: packing at load and the split of a product over a team.
 *
 * A team splits the columns when there are at least two panels a worker, else the rows; either way every
 * element is computed by one worker in the same order.
 */
#include "linear.h"

#include <string.h>

#include "../arena.h"

typedef struct {
    bvl_linear *linear;
    const bvl_kernels *kernels;
    const float *weight;
} pack_job;

static void pack_share(void *context, bvl_team team) {
    const pack_job *job = context;
    const bvl_linear *l = job->linear;
    int64_t p0, p1;
    bvl_share(bvl_panels(job->kernels, l->N), team.tid, team.nt, &p0, &p1);
    job->kernels->gemm_pack(l->packed, job->weight, l->K, l->N, l->K, false, p0, p1);
}

bvl_status bvl_copy_vector(float **out, const bvl_array *source, bvl_error *err) {
    size_t count = 1;
    for (int i = 0; i < source->rank; i++) count *= (size_t)source->shape[i];
    if (!(*out = bvl_alloc_array(count, sizeof(float))))
        return bvl_fail(err, BVL_NO_MEMORY, "no memory for %zu floats", count);
    memcpy(*out, source->data, count * sizeof(float));
    return BVL_OK;
}

bvl_status bvl_linear_init(bvl_linear *linear, const bvl_kernels *kernels, const bvl_array *weight,
                           const bvl_array *bias, int nt, bvl_error *err) {
    linear->N = weight->shape[0];
    linear->K = 1;
    for (int i = 1; i < weight->rank; i++) linear->K *= weight->shape[i];
    const int64_t floats = bvl_packed_size(kernels, linear->N, linear->K);
    if (!(linear->packed = bvl_alloc_array((size_t)floats, sizeof(float))))
        return bvl_fail(err, BVL_NO_MEMORY, "no memory for %lld packed floats", (long long)floats);
    bvl_parallel(nt, pack_share, &(pack_job){linear, kernels, weight->data});
    return bias->data ? bvl_copy_vector(&linear->bias, bias, err) : BVL_OK;
}

void bvl_linear_free(bvl_linear *linear) {
    bvl_free(linear->packed);
    bvl_free(linear->bias);
    linear->packed = linear->bias = NULL;
}

int64_t bvl_linear_bytes(const bvl_linear *linear, const bvl_kernels *kernels) {
    return (int64_t)sizeof(float) *
           (bvl_packed_size(kernels, linear->N, linear->K) + (linear->bias ? linear->N : 0));
}

void bvl_linear_run(const bvl_linear *linear, const bvl_kernels *kernels, float *y, int64_t ldy,
                    const float *x, int64_t ldx, int64_t M, bvl_activation act, const float *residual,
                    int64_t ldr, bvl_team team) {
    const int64_t panels = bvl_panels(kernels, linear->N);
    int64_t p0 = 0, p1 = panels, m0 = 0, m1 = M;
    if (panels >= 2 * team.nt)
        bvl_share(panels, team.tid, team.nt, &p0, &p1);
    else
        bvl_share(M, team.tid, team.nt, &m0, &m1);
    const bvl_epilogue epilogue = {linear->bias, residual ? residual + m0 * ldr : NULL, ldr, act};
    kernels->gemm(y + m0 * ldy, ldy, x + m0 * ldx, ldx, linear->packed, m1 - m0, linear->N, linear->K, p0, p1,
                  &epilogue);
}
