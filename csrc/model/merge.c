/* merge.c: fewer, wider rows (Liu et al., 2021).
 *
 * merge_rows   y[i] = act(norm(x[order[n i]], ..., x[order[n i + n - 1]] side by side) W^T + b)
 *
 * without norm, bias or activation where there are none. Of pictures of any size y[i] is of square i, whose
 * patches lie side by side line by line.
 *
 * A worker takes a few rows at a time through all of it, so that they stay in its cache.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

enum { ROWS_AT_ONCE = 64 };
enum { P_EPS, P_ACTIVATION };
enum { W_ORDER, W_NORM, W_NORM_BIAS, W_WEIGHT, W_BIAS };

typedef struct {
    bvl_norm norm; /* of no columns where there is none */
    bvl_linear linear;
    bvl_activation act;
    int32_t *order;      /* [src rows], or NULL: squares of patches */
    int64_t count, side; /* rows side by side; of a square of patches */
} merge;

/* Which rows lie side by side: those of a table, or the patches of a square. */
static bvl_status order_build(bvl_program *p, const bvl_record *r, const bvl_build *b, merge *s,
                              bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    const bool patches = src->kind == BVL_PATCH_ROWS && !src->rows && dst->kind == BVL_POOLED_ROWS;
    const bool fixed = src->kind == BVL_FIXED_ROWS && dst->kind == BVL_FIXED_ROWS;
    if (!patches && (!fixed || src->rows % dst->rows || r->src == r->dst))
        return bvl_fail(err, BVL_INVALID,
                        "merge_rows: %lld rows of slot %s into %lld of %s: expected a divisor, or patches "
                        "alone into squares of them",
                        (long long)src->rows, src->name, (long long)dst->rows, dst->name);
    s->side = patches ? dst->rows : 0;
    s->count = patches ? s->side * s->side : src->rows / dst->rows;
    if (!patches) return bvl_table_build(p, r, b, W_ORDER, src->rows, src->rows, true, &s->order, err);
    if (!b->weights[W_ORDER].data) return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "merge_rows: order: given, and squares have none");
}

static bvl_status merge_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    int64_t act;
    merge *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for merge_rows");
    if (order_build(p, r, b, s, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_ACTIVATION, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK)
        return err->status;
    s->act = (bvl_activation)act;
    const int64_t wide = s->count * src->cols;
    const bool normed = b->weights[W_NORM].data || b->weights[W_NORM_BIAS].data;
    if (bvl_expect(r->op, b, W_WEIGHT, 2, dst->cols, wide, 0, 0, err) != BVL_OK ||
        (normed && bvl_norm_build(p, r, b, W_NORM, wide, b->params[P_EPS], false, &s->norm, err) != BVL_OK) ||
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

/* To y[count * cols] the rows of x, those of an item, that lie side by side in its row t. */
static void gather(const merge *s, float *y, const float *x, const bvl_slot *src, int64_t t, int64_t cols) {
    const size_t bytes = (size_t)src->cols * sizeof(float);
    for (int64_t j = 0; j < s->count; j++) {
        int64_t at;
        if (s->side)
            at = bvl_square_at(t, cols, s->side) + j / s->side * cols + j % s->side;
        else
            at = s->order[t * s->count + j];
        memcpy(y + j * src->cols, x + at * src->ld, bytes);
    }
}

static void merge_run(const bvl_record *r, const bvl_run *run) {
    const merge *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const bvl_team alone = {0, 1, NULL};
    const int64_t ld = wide_words(s);
    float *rows = run->local, *operand = rows + ROWS_AT_ONCE * ld;
    float *local = operand + ROWS_AT_ONCE * operand_words(s);
    int64_t begin, end, item = 0, lines = 0, cols = 0;
    bvl_share(bvl_rows_before(run, dst, run->count), run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i += ROWS_AT_ONCE) {
        const int64_t n = BVL_MIN(ROWS_AT_ONCE, end - i);
        for (int64_t j = 0; j < n; j++) {
            while (bvl_rows_before(run, dst, item + 1) <= i + j) item++;
            if (s->side) bvl_grid_of(run->inputs, run->first + item, &lines, &cols);
            gather(s, rows + j * ld, run->slots[r->src] + bvl_rows_before(run, src, item) * src->ld, src,
                   i + j - bvl_rows_before(run, dst, item), cols);
        }
        int64_t lda = s->norm.D ? operand_words(s) : ld;
        const float *a = operand;
        if (s->norm.D)
            bvl_norm_load(&s->norm, run->kernels, &s->linear, operand, rows, ld, n, local, alone);
        else
            a = bvl_linear_load(&s->linear, operand, rows, &lda, n, alone);
        bvl_linear_run(&s->linear, run->kernels, run->slots[r->dst] + i * dst->ld, dst->ld, a, lda, n,
                       (bvl_epilogue){.act = s->act}, alone);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_merge_rows = {
    .name = "merge_rows",
    .params = {"layer_norm_eps", "activation", NULL},
    .weights = {"order", "norm_weight", "norm_bias", "weight", "bias", NULL},
    .build = merge_build,
    .local = merge_local,
    .run = merge_run,
};
