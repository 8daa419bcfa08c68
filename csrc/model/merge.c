/* merge.c: fewer, wider rows (Liu et al., 2021).
 *
 * merge_rows   y[i] = norm(x[order[n i]], ..., x[order[n i + n - 1]] side by side) W^T (+ b)
 *              or without a norm
 *
 * A worker takes a few rows at a time through all of it, so that they stay in its cache.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

enum { ROWS_AT_ONCE = 64 };
enum { W_ORDER, W_NORM, W_NORM_BIAS, W_WEIGHT, W_BIAS };

typedef struct {
    bvl_norm norm; /* of no columns where there is none */
    bvl_linear linear;
    float *order; /* [src rows] */
    int64_t count;
} merge;

static bvl_status merge_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    if (src->kind != BVL_FIXED_ROWS || dst->kind != BVL_FIXED_ROWS || src->rows % dst->rows ||
        r->src == r->dst)
        return bvl_fail(err, BVL_INVALID,
                        "merge_rows: %lld rows of slot %s into %lld of %s: expected a divisor",
                        (long long)src->rows, src->name, (long long)dst->rows, dst->name);
    const int64_t count = src->rows / dst->rows, wide = count * src->cols;
    if (bvl_expect(r->op, b, W_WEIGHT, 2, dst->cols, wide, 0, 0, err) != BVL_OK) return err->status;
    merge *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for merge_rows");
    s->count = count;
    const bool normed = b->weights[W_NORM].data || b->weights[W_NORM_BIAS].data;
    if (bvl_order_build(p, r, b, W_ORDER, src->rows, src->rows, &s->order, err) != BVL_OK ||
        (normed && bvl_norm_build(p, r, b, W_NORM, wide, b->params[0], false, &s->norm, err) != BVL_OK) ||
        (b->weights[W_BIAS].data && bvl_expect(r->op, b, W_BIAS, 1, dst->cols, 0, 0, 0, err) != BVL_OK))
        return err->status;
    return bvl_linear_init(&s->linear, &p->store, p->kernels, bvl_outer_precision(p, dst->rows),
                           &b->weights[W_WEIGHT], &b->weights[W_BIAS], b->threads, err);
}

/* Words between two rows side by side, and between two operand rows. */
static int64_t wide_words(const merge *s) {
    return bvl_padded(s->linear.K);
}

static int64_t operand_words(const merge *s) {
    return s->norm.D ? bvl_norm_operand(&s->norm, &s->linear) : bvl_linear_operand(&s->linear);
}

static int64_t merge_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const merge *s = r->state;
    (void)p, (void)in;
    return ROWS_AT_ONCE * (wide_words(s) + operand_words(s)) + bvl_norm_local(&s->norm);
}

static void merge_run(const bvl_record *r, const bvl_run *run) {
    const merge *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const bvl_team alone = {0, 1, NULL};
    const int64_t ld = wide_words(s);
    float *rows = run->local, *operand = rows + ROWS_AT_ONCE * ld;
    float *local = operand + ROWS_AT_ONCE * operand_words(s);
    int64_t begin, end;
    bvl_share(run->count * dst->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i += ROWS_AT_ONCE) {
        const int64_t n = BVL_MIN(ROWS_AT_ONCE, end - i);
        for (int64_t j = 0; j < n * s->count; j++) {
            const int64_t at = i * s->count + j, item = at / src->rows;
            const float *x =
                run->slots[r->src] + (item * src->rows + (int64_t)s->order[at % src->rows]) * src->ld;
            memcpy(rows + j / s->count * ld + j % s->count * src->cols, x, (size_t)src->cols * sizeof(float));
        }
        int64_t lda = s->norm.D ? operand_words(s) : ld;
        const float *a = operand;
        if (s->norm.D)
            bvl_norm_load(&s->norm, run->kernels, &s->linear, operand, rows, ld, n, local, alone);
        else
            a = bvl_linear_load(&s->linear, operand, rows, &lda, n, alone);
        bvl_linear_run(&s->linear, run->kernels, run->slots[r->dst] + i * dst->ld, dst->ld, a, lda, n,
                       (bvl_epilogue){0}, alone);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_merge_rows = {
    .name = "merge_rows",
    .params = {"layer_norm_eps", NULL},
    .weights = {"order", "norm_weight", "norm_bias", "weight", "bias", NULL},
    .build = merge_build,
    .local = merge_local,
    .run = merge_run,
};
