/* embed_patches.c: the stem of pictures of any size, each of which is given as its patches (NaViT; Dehghani
 * et al., 2023).
 *
 *   x[r] = patch[r] W^T + b + position(row, column of r)
 *
 * An item has as many rows as its picture has patches, row by row of it. Positions are a table over a grid of
 * its own, resized to the picture's, bilinear and antialiased:
 *
 *   position(y, x) = sum over i, j of a_y[i] b_x[j] table[i, j]
 */
#include "../arena.h"
#include "../kernels/filters.h"
#include "../ops/linear.h"
#include "ops.h"

enum { P_GRID_HEIGHT, P_GRID_WIDTH };
enum { W_WEIGHT, W_BIAS, W_POSITION };

typedef struct {
    bvl_linear linear;
    float *position;       /* [height, width, D] */
    int64_t height, width; /* of the table's grid */
} embed_patches;

static bvl_status embed_patches_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t D = p->slots[r->dst].cols;
    int64_t height, width;
    if (p->slots[r->dst].kind != BVL_PATCH_ROWS || p->declared[BVL_PIXEL_VALUES].rank)
        return bvl_fail(err, BVL_INVALID, "embed_patches: expected one per program, into a slot of patches");
    if (bvl_expect_whole(r->op, b, P_GRID_HEIGHT, 1, 1 << 10, &height, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_GRID_WIDTH, 1, 1 << 10, &width, err) != BVL_OK ||
        bvl_expect(r->op, b, W_WEIGHT, 2, D, -1, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, W_POSITION, 2, height * width, D, 0, 0, err) != BVL_OK ||
        (b->weights[W_BIAS].data && bvl_expect(r->op, b, W_BIAS, 1, D, 0, 0, 0, err) != BVL_OK))
        return err->status;
    embed_patches *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for embed_patches");
    s->height = height;
    s->width = width;
    if (bvl_linear_init(&s->linear, &p->store, p->kernels, bvl_outer_precision(p, 0), &b->weights[W_WEIGHT],
                        &b->weights[W_BIAS], b->threads, err) != BVL_OK)
        return err->status;
    const bvl_size items = {BVL_ITEMS, 0}, patches = {BVL_PATCHES, 0};
    p->declared[BVL_PIXEL_VALUES] = (bvl_declared){.name = "pixel_values",
                                                   .rank = 3,
                                                   .sizes = {items, patches, {BVL_EXACTLY, s->linear.K}},
                                                   .required = true};
    p->declared[BVL_SPATIAL_SHAPES] = (bvl_declared){.name = "spatial_shapes",
                                                     .rank = 2,
                                                     .sizes = {items, {BVL_EXACTLY, 2}},
                                                     .integers = true,
                                                     .required = true};
    p->declared[BVL_PIXEL_ATTENTION_MASK] = (bvl_declared){
        .name = "pixel_attention_mask", .rank = 2, .sizes = {items, patches}, .integers = true};
    return bvl_copy_vector(&s->position, &p->store, &b->weights[W_POSITION], err);
}

static int64_t embed_patches_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                    const bvl_inputs *in) {
    const embed_patches *s = r->state;
    (void)p, (void)count;
    return in->patches * bvl_linear_operand(&s->linear);
}

/* Doubles of the weights of one row and of one column of patches; a filter reaches no further than the grid.
 */
static int64_t embed_patches_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const embed_patches *s = r->state;
    (void)p, (void)in;
    return 2 * (s->height + s->width);
}

/* x[D] += position(row, col) of a picture of rows x cols patches; `weights` is scratch. */
static void add_position(const embed_patches *s, float *x, int64_t rows, int64_t cols, int64_t row,
                         int64_t col, double *weights) {
    const int64_t D = s->linear.N;
    double *down = weights, *right = weights + s->height;
    int64_t top, left;
    const int64_t height = bvl_filter_weights(down, BVL_BILINEAR, s->height, rows, row, &top);
    const int64_t width = bvl_filter_weights(right, BVL_BILINEAR, s->width, cols, col, &left);
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < width; j++) {
            const float w = (float)(down[i] * right[j]);
            const float *entry = s->position + ((top + i) * s->width + left + j) * D;
            for (int64_t d = 0; w != 0.0f && d < D; d++) x[d] += w * entry[d];
        }
}

static void embed_patches_run(const bvl_record *r, const bvl_run *run) {
    const embed_patches *s = r->state;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const bvl_inputs *in = run->inputs;
    const int64_t K = s->linear.K;
    for (int64_t i = 0; i < run->count; i++) {
        const int64_t *shape = in->spatial_shapes + 2 * (run->first + i);
        const int64_t rows = bvl_item_rows(run, dst, i);
        float *x = run->slots[r->dst] + bvl_rows_before(run, dst, i) * dst->ld;
        int64_t ld = K, begin, end;
        const float *a =
            bvl_linear_load(&s->linear, run->shared, in->pixel_values + (run->first + i) * in->patches * K,
                            &ld, rows, run->team);
        bvl_linear_run(&s->linear, run->kernels, x, dst->ld, a, ld, rows, (bvl_epilogue){0}, run->team);
        bvl_barrier(run->team);
        bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t t = begin; t < end; t++)
            add_position(s, x + t * dst->ld, shape[0], shape[1], t / shape[1], t % shape[1],
                         (double *)(void *)run->local);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_embed_patches = {
    .name = "embed_patches",
    .params = {"grid_height", "grid_width", NULL},
    .weights = {"weight", "bias", "position", NULL},
    .build = embed_patches_build,
    .shared = embed_patches_shared,
    .local = embed_patches_local,
    .run = embed_patches_run,
};
