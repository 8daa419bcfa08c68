/* rows.c: rows of one slot to another.
 *
 * take_rows   y[i] = mean of x[order[n i]], ..., x[order[n i + n - 1]]      put_rows   y[order[i]] = x[i]
 */
#include <string.h>

#include "../arena.h"
#include "ops.h"

typedef struct {
    int32_t *order; /* [rows of the smaller slot, count] */
    int64_t count;
} row_table;

static bvl_status table_build(bvl_program *p, bvl_record *r, const bvl_build *b, int64_t rows, int64_t count,
                              const bvl_slot *inner, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    if (src->kind != BVL_FIXED_ROWS || dst->kind != BVL_FIXED_ROWS || src->cols != dst->cols ||
        r->src == r->dst || count < 1 || count > 1 << 20)
        return bvl_fail(err, BVL_INVALID, "%s: slots %s and %s, %lld rows at once: expected two of one width",
                        r->op->name, src->name, dst->name, (long long)count);
    row_table *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    s->count = count;
    return bvl_table_build(p, r, b, 0, rows * count, inner->rows, true, &s->order, err);
}

static bvl_status take_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    return table_build(p, r, b, p->slots[r->dst].rows, (int64_t)b->params[0], &p->slots[r->src], err);
}

static void take_run(const bvl_record *r, const bvl_run *run) {
    const row_table *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    int64_t begin, end;
    bvl_share(run->count * dst->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *x = run->slots[r->src] + i / dst->rows * src->rows * src->ld;
        const int32_t *order = s->order + i % dst->rows * s->count;
        float *y = run->slots[r->dst] + i * dst->ld;
        memcpy(y, x + order[0] * src->ld, (size_t)dst->cols * sizeof(float));
        for (int64_t j = 1; j < s->count; j++) run->kernels->add(y, x + order[j] * src->ld, dst->cols);
        if (s->count > 1) run->kernels->scale(y, 1.0f / (float)s->count, dst->cols);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_take_rows = {
    .name = "take_rows",
    .params = {"count", NULL},
    .weights = {"order", NULL},
    .build = take_build,
    .run = take_run,
};

static bvl_status put_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    return table_build(p, r, b, p->slots[r->src].rows, 1, &p->slots[r->dst], err);
}

static void put_run(const bvl_record *r, const bvl_run *run) {
    const row_table *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    int64_t begin, end;
    bvl_share(run->count * src->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *y = run->slots[r->dst] + i / src->rows * dst->rows * dst->ld;
        memcpy(y + s->order[i % src->rows] * dst->ld, run->slots[r->src] + i * src->ld,
               (size_t)dst->cols * sizeof(float));
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_put_rows = {
    .name = "put_rows",
    .params = {NULL},
    .weights = {"order", NULL},
    .build = put_build,
    .run = put_run,
};
