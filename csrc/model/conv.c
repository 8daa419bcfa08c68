/* conv.c: the inverted residual of MobileNet-V2 and EfficientNet, batch norms folded into the weights.
 *
 *   h = act(x We^T + be)          expand, absent where the ratio is 1
 *   h = act(depthwise(h, Wd) + bd)
 *   y = h Wp^T + bp (+ x where the shapes agree and `residual` is set)
 * Rows are pixels, columns channels.
 */
#include "../arena.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

typedef struct {
    bvl_linear expand, project;
    float *depthwise, *bias; /* [kernel * kernel, C] [C] */
    bvl_conv_shape shape;
    bvl_activation act;
    bool residual;
} inverted_residual;

enum { MOST = 1 << 14 }; /* of a side, a kernel, a stride */

enum {
    P_HEIGHT,
    P_WIDTH,
    P_KERNEL,
    P_STRIDE,
    P_PAD_TOP,
    P_PAD_LEFT,
    P_OUT_HEIGHT,
    P_OUT_WIDTH,
    P_ACT,
    P_RESIDUAL
};
enum { EXPAND_W, EXPAND_B, DEPTHWISE_W, DEPTHWISE_B, PROJECT_W, PROJECT_B };

/* q: the parameters as whole numbers. */
static bvl_status inverted_residual_check(const bvl_program *p, const bvl_record *r, const bvl_build *b,
                                          int64_t q[P_RESIDUAL + 1], bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    int64_t channels = src->cols;
    for (int i = 0; i <= P_RESIDUAL; i++) {
        const int64_t least = i == P_PAD_TOP || i == P_PAD_LEFT || i >= P_ACT ? 0 : 1;
        const int64_t most = i == P_ACT ? BVL_ACT_COUNT - 1 : i == P_RESIDUAL ? 1 : MOST;
        if (bvl_expect_whole(r->op, b, i, least, most, &q[i], err) != BVL_OK) return err->status;
    }
    if (src->kind != BVL_FIXED_ROWS || dst->kind != BVL_FIXED_ROWS || src->rows != q[P_HEIGHT] * q[P_WIDTH] ||
        dst->rows != q[P_OUT_HEIGHT] * q[P_OUT_WIDTH])
        return bvl_fail(err, BVL_INVALID, "inverted_residual: rows do not match height x width");
    if (q[P_RESIDUAL] && (src->rows != dst->rows || src->cols != dst->cols))
        return bvl_fail(err, BVL_INVALID, "inverted_residual: a residual needs equal shapes");
    if (b->weights[EXPAND_W].data) {
        if (bvl_expect(r->op, b, EXPAND_W, 2, -1, src->cols, 0, 0, err) != BVL_OK) return err->status;
        channels = b->weights[EXPAND_W].shape[0];
        if (bvl_expect(r->op, b, EXPAND_B, 1, channels, 0, 0, 0, err) != BVL_OK) return err->status;
    }
    const int64_t taps = q[P_KERNEL] * q[P_KERNEL];
    if (bvl_expect(r->op, b, DEPTHWISE_W, 2, taps, channels, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, DEPTHWISE_B, 1, channels, 0, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, PROJECT_W, 2, dst->cols, channels, 0, 0, err) != BVL_OK)
        return err->status;
    return bvl_expect(r->op, b, PROJECT_B, 1, dst->cols, 0, 0, 0, err);
}

static bvl_status inverted_residual_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    int64_t q[P_RESIDUAL + 1];
    const bvl_array *w = b->weights;
    if (inverted_residual_check(p, r, b, q, err) != BVL_OK) return err->status;
    inverted_residual *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for inverted_residual");
    const int64_t channels = w[DEPTHWISE_W].shape[1];
    s->act = (bvl_activation)q[P_ACT];
    s->residual = q[P_RESIDUAL] != 0;
    s->shape = (bvl_conv_shape){channels,
                                q[P_HEIGHT],
                                q[P_WIDTH],
                                q[P_OUT_HEIGHT],
                                q[P_OUT_WIDTH],
                                q[P_KERNEL],
                                q[P_STRIDE],
                                q[P_PAD_TOP],
                                q[P_PAD_LEFT],
                                w[EXPAND_W].data ? bvl_padded(channels) : p->slots[r->src].ld,
                                bvl_padded(channels)};
    const bvl_precision precision = bvl_outer_precision(p, p->slots[r->dst].rows);
    if (w[EXPAND_W].data) {
        if (bvl_linear_init(&s->expand, &p->store, p->kernels, precision, &w[EXPAND_W], &w[EXPAND_B],
                            b->threads, err) != BVL_OK)
            return err->status;
    }
    if (bvl_linear_init(&s->project, &p->store, p->kernels, precision, &w[PROJECT_W], &w[PROJECT_B],
                        b->threads, err) != BVL_OK ||
        bvl_copy_vector(&s->depthwise, &p->store, &w[DEPTHWISE_W], err) != BVL_OK)
        return err->status;
    return bvl_copy_vector(&s->bias, &p->store, &w[DEPTHWISE_B], err);
}

/* Words of operand rows: of the expansion's input, later of the projection's. */
static int64_t operand_size(const inverted_residual *s, int64_t rows, int64_t out_rows) {
    const int64_t expand = s->expand.packed ? bvl_linear_operand(&s->expand) : 0;
    return BVL_MAX(rows * expand, out_rows * bvl_linear_operand(&s->project));
}

static int64_t inverted_residual_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                        const bvl_inputs *in) {
    const inverted_residual *s = r->state;
    const int64_t rows = p->slots[r->src].rows, out_rows = p->slots[r->dst].rows;
    (void)count, (void)in; /* one picture at a time */
    return rows * s->shape.ld_in + out_rows * s->shape.ld_out + operand_size(s, rows, out_rows);
}

static void inverted_residual_run(const bvl_record *r, const bvl_run *run) {
    const inverted_residual *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    float *wide = run->shared, *deep = wide + src->rows * s->shape.ld_in,
          *operand = deep + dst->rows * s->shape.ld_out;
    for (int64_t i = 0; i < run->count; i++) {
        const float *x = run->slots[r->src] + i * src->rows * src->ld, *a;
        float *y = run->slots[r->dst] + i * dst->rows * dst->ld;
        int64_t ld = src->ld;
        if (s->expand.packed) {
            a = bvl_linear_load(&s->expand, operand, x, &ld, src->rows, run->team);
            bvl_linear_run(&s->expand, k, wide, s->shape.ld_in, a, ld, src->rows,
                           (bvl_epilogue){.act = s->act}, run->team);
            bvl_barrier(run->team);
        }
        bvl_depthwise_run(k, deep, s->expand.packed ? wide : x, s->depthwise, s->bias, s->act, &s->shape,
                          run->team);
        bvl_barrier(run->team);
        ld = s->shape.ld_out;
        a = bvl_linear_load(&s->project, operand, deep, &ld, dst->rows, run->team);
        bvl_linear_run(&s->project, k, y, dst->ld, a, ld, dst->rows,
                       (bvl_epilogue){.residual = s->residual ? x : NULL, .ldr = src->ld}, run->team);
        bvl_barrier(run->team);
    }
}

const bvl_op bvl_op_inverted_residual = {
    .name = "inverted_residual",
    .params = {"height", "width", "kernel", "stride", "pad_top", "pad_left", "out_height", "out_width",
               "activation", "residual", NULL},
    .weights = {"expand_weight", "expand_bias", "depthwise_weight", "depthwise_bias", "project_weight",
                "project_bias", NULL},
    .build = inverted_residual_build,
    .shared = inverted_residual_shared,
    .run = inverted_residual_run,
};
