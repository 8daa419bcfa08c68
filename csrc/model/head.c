/* head.c: what stands between the blocks and an embedding.
 *
 * norm           y = norm(x), every row            linear         y = act(x W^T + b), or y += x W^T + b;
 *                                                                 as_blocks: in the precision of the blocks
 * l2_normalize   y = x / |x|, every row            softmax        y = softmax(x), every row
 * pool           y = one row of x, or a mean over its rows
 * first_rows     y = the first rows of x: what the query tokens drew
 * copy           y = x, for what changes x in place
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

static bvl_status same_rows(const bvl_program *p, const bvl_record *r, bool same_cols, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    if (src->rows == dst->rows && src->kind == dst->kind && (!same_cols || src->cols == dst->cols))
        return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "%s: slots %s and %s differ in shape", r->op->name, src->name,
                    dst->name);
}

static bvl_status norm_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (same_rows(p, r, true, err) != BVL_OK) return err->status;
    if (!(r->state = bvl_alloc(sizeof(bvl_norm)))) return bvl_fail(err, BVL_NO_MEMORY, "no memory for norm");
    return bvl_norm_build(p, r, b, 0, p->slots[r->src].cols, b->params[0], b->params[1] != 0, r->state, err);
}

static void norm_run(const bvl_record *r, const bvl_run *run) {
    int64_t ldx, ldy;
    const int64_t rows = bvl_run_rows(run, r->src, &ldx);
    bvl_run_rows(run, r->dst, &ldy);
    bvl_norm_run(r->state, run->kernels, run->slots[r->dst], ldy, run->slots[r->src], ldx, rows, run->team);
    bvl_barrier(run->team);
}

const bvl_op bvl_op_norm = {
    .name = "norm",
    .params = {"layer_norm_eps", "rms_norm", NULL},
    .weights = {"weight", "bias", NULL},
    .build = norm_build,
    .run = norm_run,
    .row_wise = true,
};

typedef struct {
    bvl_linear linear;
    bvl_activation act;
    bool accumulate;
} linear_state;

static bvl_status linear_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t K = p->slots[r->src].cols, N = p->slots[r->dst].cols;
    if (same_rows(p, r, false, err) != BVL_OK || bvl_expect(r->op, b, 0, 2, N, K, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[1].data && bvl_expect(r->op, b, 1, 1, N, 0, 0, 0, err) != BVL_OK) return err->status;
    if (r->src == r->dst) return bvl_fail(err, BVL_INVALID, "linear: expected two slots");
    int64_t act;
    if (bvl_expect_whole(r->op, b, 0, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK) return err->status;
    linear_state *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for linear");
    s->act = (bvl_activation)act;
    s->accumulate = b->params[1] != 0;
    if (s->accumulate && s->act != BVL_ACT_NONE)
        return bvl_fail(err, BVL_INVALID, "linear: an activation and accumulate do not go together");
    const bvl_precision precision =
        b->params[2] != 0 ? p->precision : bvl_outer_precision(p, p->slots[r->src].rows);
    if (bvl_linear_init(&s->linear, &p->store, p->kernels, precision, &b->weights[0], &b->weights[1],
                        b->threads, err) != BVL_OK)
        return err->status;
    return BVL_OK;
}

static int64_t linear_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    const linear_state *s = r->state;
    return count * bvl_slot_rows(&p->slots[r->src], in) * bvl_linear_operand(&s->linear);
}

static void linear_run(const bvl_record *r, const bvl_run *run) {
    const linear_state *s = r->state;
    int64_t ld, lda;
    const int64_t rows = bvl_run_rows(run, r->src, &lda);
    bvl_run_rows(run, r->dst, &ld);
    float *y = run->slots[r->dst];
    const float *a = bvl_linear_load(&s->linear, run->shared, run->slots[r->src], &lda, rows, run->team);
    const bvl_epilogue epilogue = {.act = s->act, .residual = s->accumulate ? y : NULL, .ldr = ld};
    bvl_linear_run(&s->linear, run->kernels, y, ld, a, lda, rows, epilogue, run->team);
    bvl_barrier(run->team);
}

const bvl_op bvl_op_linear = {
    .name = "linear",
    .params = {"activation", "accumulate", "as_blocks", NULL},
    .weights = {"weight", "bias", NULL},
    .build = linear_build,
    .shared = linear_shared,
    .run = linear_run,
    .row_wise = true,
};

/* Kinds of pool; the names are exported to Python as _C.POOLS. */
typedef enum {
    POOL_FIRST,  /* the first row: a class token */
    POOL_LAST,   /* the last row, padding or not */
    POOL_MEAN,   /* mean of the rows whose attention_mask is not 0 */
    POOL_ARGMAX, /* the row of the largest token id, the first of equals */
    POOL_TOKEN,  /* the first row whose token id is `token`; row 0 where none is */
    POOL_COUNT
} pool_kind;

const char *const bvl_pool_names[] = {"first", "last", "mean", "argmax", "token", NULL};

typedef struct {
    pool_kind kind;
    int64_t token;
} pool_state;

static bvl_status pool_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    const int kind = (int)b->params[0];
    if (kind < 0 || kind >= POOL_COUNT || dst->kind != BVL_FIXED_ROWS || dst->rows != 1 ||
        dst->cols != src->cols ||
        ((kind == POOL_ARGMAX || kind == POOL_TOKEN) &&
         (src->kind != BVL_TEXT_ROWS || !p->declared[BVL_INPUT_IDS].rank)) ||
        (kind != POOL_FIRST && src->kind == BVL_TEXT_ROWS &&
         src->rows)) /* which rows are text changes from call to call */
        return bvl_fail(err, BVL_INVALID, "pool: kind %d does not fit slots %s and %s", kind, src->name,
                        dst->name);
    pool_state *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for pool");
    s->kind = (pool_kind)kind;
    s->token = (int64_t)b->params[1];
    return BVL_OK;
}

static int64_t pooled_row(const pool_state *s, const int64_t *ids, int64_t T) {
    int64_t best = 0;
    switch (s->kind) {
        case POOL_LAST: return BVL_MAX(T - 1, 0);
        case POOL_ARGMAX:
            for (int64_t t = 1; t < T; t++)
                if (ids[t] > ids[best]) best = t;
            return best;
        case POOL_TOKEN:
            for (int64_t t = 0; t < T; t++)
                if (ids[t] == s->token) return t;
            return 0;
        default: return 0;
    }
}

static int64_t pool_row(const bvl_record *r, const bvl_run *run, int64_t item) {
    const pool_state *s = r->state;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *src = &run->program->slots[r->src];
    if (s->kind == POOL_MEAN) return -1;
    const bool ids = s->kind == POOL_ARGMAX || s->kind == POOL_TOKEN;
    return pooled_row(s, ids ? in->input_ids + (run->first + item) * in->L : NULL,
                      bvl_item_rows(run, src, item));
}

static void pool_run(const bvl_record *r, const bvl_run *run) {
    const pool_state *s = r->state;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const bool text = src->kind == BVL_TEXT_ROWS;
    int64_t begin, end;
    bvl_share(run->count, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *x = run->slots[r->src] + bvl_rows_before(run, src, i) * src->ld;
        float *y = run->slots[r->dst] + i * dst->ld;
        const int64_t T = bvl_item_rows(run, src, i);
        if (T < 1)
            memset(y, 0, (size_t)src->cols * sizeof(float));
        else if (s->kind == POOL_MEAN)
            bvl_mean_rows(run->kernels, y, x, src->ld, T, src->cols,
                          text ? bvl_item_mask(in, run->first + i) : NULL);
        else
            memcpy(y, x + (run->pool ? 0 : pool_row(r, run, i)) * src->ld, (size_t)src->cols * sizeof(float));
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_pool = {
    .name = "pool",
    .params = {"kind", "token", NULL},
    .weights = {NULL},
    .build = pool_build,
    .run = pool_run,
    .row = pool_row,
};

/* Operations without weights: both slots have one shape. */
static bvl_status same_shape_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    (void)b;
    return same_rows(p, r, true, err);
}

static void l2_normalize_run(const bvl_record *r, const bvl_run *run) {
    const bvl_slot *src = &run->program->slots[r->src];
    bvl_l2_normalize_run(run->kernels, run->slots[r->dst], run->program->slots[r->dst].ld, run->slots[r->src],
                         src->ld, bvl_rows_before(run, src, run->count), src->cols, run->team);
    bvl_barrier(run->team);
}

const bvl_op bvl_op_l2_normalize = {
    .name = "l2_normalize",
    .params = {NULL},
    .weights = {NULL},
    .build = same_shape_build,
    .run = l2_normalize_run,
};

static void copy_run(const bvl_record *r, const bvl_run *run) {
    const bvl_slot *src = &run->program->slots[r->src];
    int64_t begin, end;
    bvl_share(bvl_rows_before(run, src, run->count), run->team.tid, run->team.nt, &begin, &end);
    memcpy(run->slots[r->dst] + begin * src->ld, run->slots[r->src] + begin * src->ld,
           (size_t)((end - begin) * src->ld) * sizeof(float));
    bvl_barrier(run->team);
}

const bvl_op bvl_op_copy = {
    .name = "copy",
    .params = {NULL},
    .weights = {NULL},
    .build = same_shape_build,
    .run = copy_run,
};

static void softmax_run(const bvl_record *r, const bvl_run *run) {
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    int64_t begin, end;
    bvl_share(bvl_rows_before(run, src, run->count), run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *y = run->slots[r->dst] + i * dst->ld;
        if (r->src != r->dst) memcpy(y, run->slots[r->src] + i * src->ld, (size_t)src->cols * sizeof(float));
        run->kernels->softmax(y, 0, y, 0, 1, src->cols, 1.0f, NULL, 0, false);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_softmax = {
    .name = "softmax",
    .params = {NULL},
    .weights = {NULL},
    .build = same_shape_build,
    .run = softmax_run,
};

static bvl_status first_rows_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    (void)b;
    if (dst->rows <= src->rows && !bvl_rows_vary(src) && dst->kind == BVL_FIXED_ROWS &&
        dst->cols == src->cols)
        return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "first_rows: slot %s does not fit the first rows of %s", dst->name,
                    src->name);
}

static void first_rows_run(const bvl_record *r, const bvl_run *run) {
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const int64_t T = bvl_slot_rows(src, run->inputs), there = BVL_MIN(T, dst->rows);
    int64_t begin, end;
    bvl_share(run->count * dst->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *y = run->slots[r->dst] + i * dst->ld;
        const int64_t t = i % dst->rows;
        if (t < there)
            memcpy(y, run->slots[r->src] + (i / dst->rows * T + t) * src->ld,
                   (size_t)dst->cols * sizeof(float));
        else
            memset(y, 0, (size_t)dst->cols * sizeof(float));
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_first_rows = {
    .name = "first_rows",
    .params = {NULL},
    .weights = {NULL},
    .build = first_rows_build,
    .run = first_rows_run,
};
