/* linear.h: y = act(x W^T + b) + residual, with W packed when the model is loaded; what it reads and what it
 * gives may be clipped. */
#ifndef BVL_LINEAR_H
#define BVL_LINEAR_H

#include "../kernels/kernels.h"
#include "../parallel.h"
#include "../store.h"

typedef struct bvl_linear {
    float *packed; /* W [N, K] in the layout of `product` */
    float *bias;   /* [N] or NULL */
    int64_t N, K;
    const bvl_product *product;
    const float *reads;      /* [2, K] the least and the most of each element of x, or NULL */
    const float *low, *high; /* [N] of each element of x W^T + b, or NULL */
    struct bvl_linear *next; /* of the same x, clipped to other bounds: the columns after these; or NULL */
} bvl_linear;

/* Packs weight [N, K] (or [N, ...] flattened to K) and copies bias into the store, on nt threads. */
bvl_status bvl_linear_init(bvl_linear *linear, bvl_store *store, const bvl_kernels *kernels,
                           bvl_precision precision, const bvl_array *weight, const bvl_array *bias, int nt,
                           bvl_error *err);
/* The same of weight [N, K], whose rows are ld apart. */
bvl_status bvl_linear_init_strided(bvl_linear *linear, bvl_store *store, const bvl_kernels *kernels,
                                   bvl_precision precision, const float *weight, int64_t ld, int64_t N,
                                   int64_t K, const bvl_array *bias, int nt, bvl_error *err);

/* Words between two operand rows of this product; 0 where it reads float32 rows as they are. */
int64_t bvl_linear_operand(const bvl_linear *linear);
/* The rows this product reads for x[rows, K] (*ld apart): x itself, or operand rows written to `scratch`, all
 * of the team taking part and a barrier after it; then *ld is theirs. */
const float *bvl_linear_load(const bvl_linear *linear, float *scratch, const float *x, int64_t *ld,
                             int64_t rows, bvl_team team);

/* The same of rows of scratch, which are clipped in place where the product's input is. */
const float *bvl_linear_take(const bvl_linear *linear, const bvl_kernels *kernels, float *scratch, float *x,
                             int64_t *ld, int64_t rows, bvl_team team);
/* Clips x[rows, K] (ldx apart) to what the product reads, without a barrier; nothing where it reads all. */
void bvl_linear_clamp(const bvl_linear *linear, const bvl_kernels *kernels, float *x, int64_t ldx,
                      int64_t rows);

/* This worker's share of y[M, N] (rows ldy apart) from M operand rows; no barrier. The epilogue's residual
 * may be y; its bias is filled in here. */
void bvl_linear_run(const bvl_linear *linear, const bvl_kernels *kernels, float *y, int64_t ldy,
                    const float *a, int64_t lda, int64_t M, bvl_epilogue epilogue, bvl_team team);

/* A copy of a parameter in the store; the second rounds it to bfloat16. */
bvl_status bvl_copy_vector(float **out, bvl_store *store, const bvl_array *source, bvl_error *err);
bvl_status bvl_copy_bfloat16(uint16_t **out, bvl_store *store, const bvl_array *source, bvl_error *err);
/* y[n] = x[n] */
void bvl_widen(float *y, const uint16_t *x, int64_t n);

#endif
