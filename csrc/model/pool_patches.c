/* pool_patches.c: the mean of each square of a picture's patches (Gemma 3; Google, 2025).
 *
 *   y[r / side, c / side] = (mean over the side x side patches around) * gain + offset
 *
 * gain and offset are of each column, or absent.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

enum { W_GAIN, W_OFFSET };

typedef struct {
    float *gain, *offset; /* [D] or NULL */
} pool_patches;

static bvl_status pool_patches_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    if (src->kind != BVL_PATCH_ROWS || src->rows || dst->kind != BVL_POOLED_ROWS || src->cols != dst->cols)
        return bvl_fail(err, BVL_INVALID,
                        "pool_patches: slots %s and %s: expected one of patches alone and one of squares of "
                        "them, of one width",
                        src->name, dst->name);
    pool_patches *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for pool_patches");
    float **const to[] = {&s->gain, &s->offset};
    for (int i = W_GAIN; i <= W_OFFSET; i++)
        if (b->weights[i].data && (bvl_expect(r->op, b, i, 1, dst->cols, 0, 0, 0, err) != BVL_OK ||
                                   bvl_copy_vector(to[i], &p->store, &b->weights[i], err) != BVL_OK))
            return err->status;
    return BVL_OK;
}

/* y[D] = the mean of side x side rows of x, whose lines of a picture are `line` apart. */
static void pool_square(const pool_patches *s, const bvl_kernels *k, float *y, const float *x, int64_t ldx,
                        int64_t line, int64_t side, int64_t D) {
    memset(y, 0, (size_t)D * sizeof(float));
    for (int64_t i = 0; i < side; i++)
        for (int64_t j = 0; j < side; j++) k->add(y, x + i * line + j * ldx, D);
    k->scale(y, 1.0f / (float)(side * side), D);
    for (int64_t d = 0; s->gain && d < D; d++) y[d] *= s->gain[d];
    if (s->offset) k->add(y, s->offset, D);
}

static void pool_patches_run(const bvl_record *r, const bvl_run *run) {
    const pool_patches *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const int64_t side = dst->rows;
    for (int64_t i = 0; i < run->count; i++) {
        int64_t begin, end, rows, cols;
        bvl_grid_of(run->inputs, run->first + i, &rows, &cols);
        const float *x = run->slots[r->src] + bvl_rows_before(run, src, i) * src->ld;
        float *y = run->slots[r->dst] + bvl_rows_before(run, dst, i) * dst->ld;
        bvl_share(bvl_item_rows(run, dst, i), run->team.tid, run->team.nt, &begin, &end);
        for (int64_t t = begin; t < end; t++)
            pool_square(s, run->kernels, y + t * dst->ld, x + bvl_square_at(t, cols, side) * src->ld, src->ld,
                        cols * src->ld, side, dst->cols);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_pool_patches = {
    .name = "pool_patches",
    .params = {NULL},
    .weights = {"gain", "offset", NULL},
    .build = pool_patches_build,
    .run = pool_patches_run,
};
