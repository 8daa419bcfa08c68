/* rows.h: operations on the rows of a slot, split over a team by rows; no barriers. */
#ifndef BVL_ROWS_H
#define BVL_ROWS_H

#include "../kernels/kernels.h"
#include "../parallel.h"
#include "linear.h"

/* Layer norm, or with beta NULL the norm by the root of the mean square (Zhang and Sennrich, 2019), or with
 * both NULL none, which is loaded as it is. */
typedef struct {
    float *gamma, *beta; /* [D] */
    float eps;
    int64_t D;
} bvl_norm;

/* beta->data NULL: rms_norm */
bvl_status bvl_norm_init(bvl_norm *norm, bvl_store *store, const bvl_array *gamma, const bvl_array *beta,
                         double eps, bvl_error *err);
/* y[rows, D] = norm(x[rows, D]); y may be x */
void bvl_norm_run(const bvl_norm *norm, const bvl_kernels *kernels, float *y, int64_t ldy, const float *x,
                  int64_t ldx, int64_t rows, bvl_team team);

/* The operand rows of `linear` for norm(x[rows, D]), to y (ldy: bvl_norm_operand);
 * local[bvl_norm_local] is this worker's. */
void bvl_norm_load(const bvl_norm *norm, const bvl_kernels *kernels, const bvl_linear *linear, float *y,
                   const float *x, int64_t ldx, int64_t rows, float *local, bvl_team team);
int64_t bvl_norm_local(const bvl_norm *norm); /* 0 for one that is all zeros */
/* Words between two of those rows. */
int64_t bvl_norm_operand(const bvl_norm *norm, const bvl_linear *linear);

/* y[rows, D] = x / |x| per row */
void bvl_l2_normalize_run(const bvl_kernels *kernels, float *y, int64_t ldy, const float *x, int64_t ldx,
                          int64_t rows, int64_t D, bvl_team team);

/* y[D] = mean of the rows of x[T, D] with mask[t] != 0 (mask NULL: of all); zeros when none is. */
void bvl_mean_rows(const bvl_kernels *kernels, float *y, const float *x, int64_t ldx, int64_t T, int64_t D,
                   const int64_t *mask);

#endif
