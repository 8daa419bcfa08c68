/* rows.c: norms and means over rows. */
#include "rows.h"

#include <string.h>

#include "linear.h"

bvl_status bvl_norm_init(bvl_norm *norm, bvl_store *store, const bvl_array *gamma, const bvl_array *beta,
                         double eps, bvl_error *err) {
    norm->D = gamma->shape[0];
    norm->eps = (float)eps;
    if (bvl_copy_vector(&norm->gamma, store, gamma, err) != BVL_OK) return err->status;
    return beta->data ? bvl_copy_vector(&norm->beta, store, beta, err) : BVL_OK;
}

static void norm_share(const bvl_norm *norm, const bvl_kernels *kernels, float *y, int64_t ldy,
                       const float *x, int64_t ldx, int64_t rows, bool bf16, bvl_team team) {
    int64_t r0, r1;
    bvl_share(rows, team.tid, team.nt, &r0, &r1);
    kernels->norm(y + r0 * ldy, ldy, x + r0 * ldx, ldx, norm->gamma, norm->beta, norm->eps, r1 - r0, norm->D,
                  bf16);
}

void bvl_norm_run(const bvl_norm *norm, const bvl_kernels *kernels, float *y, int64_t ldy, const float *x,
                  int64_t ldx, int64_t rows, bvl_team team) {
    norm_share(norm, kernels, y, ldy, x, ldx, rows, false, team);
}

int64_t bvl_norm_operand(const bvl_norm *norm, const bvl_linear *linear) {
    const int64_t words = bvl_linear_operand(linear);
    return words ? words : bvl_padded(norm->D);
}

/* Rows that are normed before the first is rounded, whose load need not wait for its stores then: whole
 * fours, which the norm takes at once, while they stay near. */
static int64_t norm_rows_at_once(int64_t D) {
    return D <= 512 ? 8 : D <= 2048 ? 4 : 1;
}

int64_t bvl_norm_local(const bvl_norm *norm) {
    return norm->D ? bvl_round_up(norm_rows_at_once(norm->D) * norm->D, 16) : 0;
}

/* The rows themselves, as a product reads them. */
static void load_rows(const bvl_linear *linear, const bvl_kernels *kernels, float *y, int64_t ldy,
                      const float *x, int64_t ldx, int64_t rows, float *local, int64_t D) {
    for (int64_t r = 0; r < rows; r++) {
        float *row = linear->product->load ? local : y + r * ldy;
        memcpy(row, x + r * ldx, (size_t)D * sizeof(float));
        bvl_linear_clamp(linear, kernels, row, D, 1);
        if (linear->product->load) linear->product->load(y + r * ldy, ldy, row, D, 1, D);
    }
}

void bvl_norm_load(const bvl_norm *norm, const bvl_kernels *kernels, const bvl_linear *linear, float *y,
                   const float *x, int64_t ldx, int64_t rows, float *local, bvl_team team) {
    const int64_t ldy = bvl_norm_operand(norm, linear);
    int64_t r0, r1;
    const bool bf16 =
        kernels->bf16_rows && linear->product == &kernels->product[BVL_BFLOAT16] && !linear->reads;
    bvl_share(rows, team.tid, team.nt, &r0, &r1);
    if (!norm->gamma) {
        load_rows(linear, kernels, y + r0 * ldy, ldy, x + r0 * ldx, ldx, r1 - r0, local, norm->D);
        return;
    }
    if (bf16 || !linear->product->load) {
        norm_share(norm, kernels, y, ldy, x, ldx, rows, bf16, team);
        bvl_linear_clamp(linear, kernels, y + r0 * ldy, ldy, r1 - r0);
        return;
    }
    const int64_t most = norm_rows_at_once(norm->D);
    for (int64_t r = r0; r < r1; r += most) {
        const int64_t n = BVL_MIN(most, r1 - r);
        kernels->norm(local, norm->D, x + r * ldx, ldx, norm->gamma, norm->beta, norm->eps, n, norm->D,
                      false);
        bvl_linear_clamp(linear, kernels, local, norm->D, n);
        linear->product->load(y + r * ldy, ldy, local, norm->D, n, norm->D);
    }
}

void bvl_l2_normalize_run(const bvl_kernels *kernels, float *y, int64_t ldy, const float *x, int64_t ldx,
                          int64_t rows, int64_t D, bvl_team team) {
    int64_t r0, r1;
    bvl_share(rows, team.tid, team.nt, &r0, &r1);
    for (int64_t r = r0; r < r1; r++) kernels->l2_normalize(y + r * ldy, x + r * ldx, D);
}

void bvl_mean_rows(const bvl_kernels *kernels, float *y, const float *x, int64_t ldx, int64_t T, int64_t D,
                   const int64_t *mask) {
    int64_t count = 0;
    memset(y, 0, (size_t)D * sizeof(float));
    for (int64_t t = 0; t < T; t++) {
        if (mask && !mask[t]) continue;
        kernels->add(y, x + t * ldx, D);
        count++;
    }
    if (count) kernels->scale(y, 1.0f / (float)count, D);
}
