/* linear.c: packing at load and the split of a product over a team.
 *
 * A team splits the columns when there are at least two panels a worker, else the rows; either way every
 * element is computed by one worker in the same order.
 */
#include "linear.h"

#include <string.h>

enum { INT8_MOST_K = 65536 }; /* 255 x 127 x K fits in an int32 */

typedef struct {
    bvl_linear *linear;
    const bvl_kernels *kernels;
    const float *weight;
    int64_t ld;
} pack_job;

static void pack_share(void *context, bvl_team team) {
    const pack_job *job = context;
    const bvl_linear *l = job->linear;
    int64_t p0, p1;
    bvl_share(bvl_panels(job->kernels, l->N), team.tid, team.nt, &p0, &p1);
    l->product->pack(l->packed, job->weight, job->ld, l->N, l->K, false, p0, p1);
}

static size_t element_count(const bvl_array *a) {
    size_t count = 1;
    for (int i = 0; i < a->rank; i++) count *= (size_t)a->shape[i];
    return count;
}

bvl_status bvl_copy_vector(float **out, bvl_store *store, const bvl_array *source, bvl_error *err) {
    const size_t count = element_count(source);
    void *memory;
    bool filled;
    if (bvl_store_take(store, count * sizeof **out, &memory, &filled, err) != BVL_OK) return err->status;
    *out = memory;
    if (!filled) memcpy(*out, source->data, count * sizeof **out);
    return BVL_OK;
}

bvl_status bvl_copy_bfloat16(uint16_t **out, bvl_store *store, const bvl_array *source, bvl_error *err) {
    const size_t count = element_count(source);
    void *memory;
    bool filled;
    if (bvl_store_take(store, count * sizeof **out, &memory, &filled, err) != BVL_OK) return err->status;
    *out = memory;
    for (size_t i = 0; i < count && !filled; i++) (*out)[i] = bvl_to_bf16(source->data[i]);
    return BVL_OK;
}

void bvl_widen(float *y, const uint16_t *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = bvl_from_bf16(x[i]);
}

bvl_status bvl_linear_init_strided(bvl_linear *linear, bvl_store *store, const bvl_kernels *kernels,
                                   bvl_precision precision, const float *weight, int64_t ld, int64_t N,
                                   int64_t K, const bvl_array *bias, int nt, bvl_error *err) {
    void *memory;
    bool filled;
    *linear = (bvl_linear){.N = N, .K = K, .product = &kernels->product[precision]};
    if (precision == BVL_INT8 && K > INT8_MOST_K)
        return bvl_fail(err, BVL_INVALID, "a product over %lld inputs, expected at most %d in int8",
                        (long long)K, INT8_MOST_K);
    const int64_t words = linear->product->packed_words(N, K);
    if (bvl_store_take(store, (size_t)words * sizeof(float), &memory, &filled, err) != BVL_OK)
        return err->status;
    linear->packed = memory;
    if (!filled) bvl_parallel(nt, pack_share, &(pack_job){linear, kernels, weight, ld});
    return bias->data ? bvl_copy_vector(&linear->bias, store, bias, err) : BVL_OK;
}

bvl_status bvl_linear_init(bvl_linear *linear, bvl_store *store, const bvl_kernels *kernels,
                           bvl_precision precision, const bvl_array *weight, const bvl_array *bias, int nt,
                           bvl_error *err) {
    int64_t K = 1;
    for (int i = 1; i < weight->rank; i++) K *= weight->shape[i];
    return bvl_linear_init_strided(linear, store, kernels, precision, weight->data, K, weight->shape[0], K,
                                   bias, nt, err);
}

int64_t bvl_linear_operand(const bvl_linear *linear) {
    return linear->product->load ? bvl_padded(linear->product->operand_words(linear->K)) : 0;
}

const float *bvl_linear_load(const bvl_linear *linear, float *scratch, const float *x, int64_t *ld,
                             int64_t rows, bvl_team team) {
    const int64_t ldd = bvl_linear_operand(linear);
    int64_t r0, r1;
    if (!ldd) return x;
    bvl_share(rows, team.tid, team.nt, &r0, &r1);
    linear->product->load(scratch + r0 * ldd, ldd, x + r0 * *ld, *ld, r1 - r0, linear->K);
    bvl_barrier(team);
    *ld = ldd;
    return scratch;
}

void bvl_linear_clamp(const bvl_linear *linear, const bvl_kernels *kernels, float *x, int64_t ldx,
                      int64_t rows) {
    for (int64_t i = 0; i < rows && linear->reads; i++)
        kernels->clamp(x + i * ldx, linear->reads, linear->reads + linear->K, linear->K);
}

const float *bvl_linear_take(const bvl_linear *linear, const bvl_kernels *kernels, float *scratch, float *x,
                             int64_t *ld, int64_t rows, bvl_team team) {
    int64_t r0, r1;
    bvl_share(rows, team.tid, team.nt, &r0, &r1); /* the rows that are this worker's to load, too */
    bvl_linear_clamp(linear, kernels, x + r0 * *ld, *ld, r1 - r0);
    if (linear->reads && !bvl_linear_operand(linear)) bvl_barrier(team);
    return bvl_linear_load(linear, scratch, x, ld, rows, team);
}

void bvl_linear_run(const bvl_linear *linear, const bvl_kernels *kernels, float *y, int64_t ldy,
                    const float *a, int64_t lda, int64_t M, bvl_epilogue epilogue, bvl_team team) {
    const int64_t panels = bvl_panels(kernels, linear->N);
    int64_t p0 = 0, p1 = panels, m0 = 0, m1 = M;
    if (panels >= 2 * team.nt)
        bvl_share(panels, team.tid, team.nt, &p0, &p1);
    else
        bvl_share(M, team.tid, team.nt, &m0, &m1);
    epilogue.bias = linear->bias;
    epilogue.low = linear->low;
    epilogue.high = linear->high;
    if (epilogue.residual) epilogue.residual += m0 * epilogue.ldr;
    linear->product->gemm(y + m0 * ldy, ldy, a + m0 * lda, lda, linear->packed, m1 - m0, linear->N, linear->K,
                          p0, p1, &epilogue);
}
