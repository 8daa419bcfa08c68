/* depthwise.c: what convnets of few products are made of. Rows are pixels, columns channels.
 *
 * depthwise        y[c m + j] = act(x[c] * W[j, c] + b[j, c]), j < m: each channel makes m of its own
 * squeeze_excite   y = act(x sigmoid(relu(mean(x) W1^T + b1) W2^T + b2)) (Hu et al., 2018), in place
 */
#include <math.h>

#include "../arena.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

enum { MOST = 1 << 14 }; /* of a side, a kernel, a stride */
enum { P_HEIGHT, P_WIDTH, P_KERNEL, P_STRIDE, P_PAD, P_OUT_HEIGHT, P_OUT_WIDTH, P_ACT, P_COUNT };

typedef struct {
    float *weight, *bias; /* [m, kernel * kernel, C] [m, C] */
    int64_t each;         /* m */
    bvl_conv_shape shape; /* of one of them */
    bvl_activation act;
} depthwise;

static bvl_status depthwise_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    int64_t q[P_COUNT];
    for (int i = 0; i < P_COUNT; i++) {
        const int64_t most = i == P_ACT ? BVL_ACT_COUNT - 1 : MOST;
        if (bvl_expect_whole(r->op, b, i, i == P_PAD || i == P_ACT ? 0 : 1, most, &q[i], err) != BVL_OK)
            return err->status;
    }
    const int64_t C = src->cols, m = dst->cols / C, taps = q[P_KERNEL] * q[P_KERNEL];
    if (src->kind != BVL_FIXED_ROWS || dst->kind != BVL_FIXED_ROWS || r->src == r->dst || m < 1 ||
        m * C != dst->cols || src->rows != q[P_HEIGHT] * q[P_WIDTH] ||
        dst->rows != q[P_OUT_HEIGHT] * q[P_OUT_WIDTH] ||
        (q[P_OUT_HEIGHT] - 1) * q[P_STRIDE] - q[P_PAD] >= q[P_HEIGHT] ||
        (q[P_OUT_WIDTH] - 1) * q[P_STRIDE] - q[P_PAD] >= q[P_WIDTH] || q[P_PAD] >= q[P_KERNEL])
        return bvl_fail(
            err, BVL_INVALID,
            "depthwise: %lld x %lld of slot %s, %lld x %lld of %s: expected height x width, as many "
            "channels or a multiple, and windows that begin within the picture",
            (long long)src->rows, (long long)C, src->name, (long long)dst->rows, (long long)dst->cols,
            dst->name);
    if (bvl_expect(r->op, b, 0, 3, m, taps, C, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, 1, 2, m, C, 0, 0, err) != BVL_OK)
        return err->status;
    depthwise *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for depthwise");
    s->act = (bvl_activation)q[P_ACT];
    s->each = m;
    s->shape = (bvl_conv_shape){
        C,           q[P_HEIGHT], q[P_WIDTH], q[P_OUT_HEIGHT], q[P_OUT_WIDTH],      q[P_KERNEL],
        q[P_STRIDE], q[P_PAD],    q[P_PAD],   src->ld,         m == 1 ? dst->ld : C};
    if (bvl_copy_vector(&s->weight, &p->store, &b->weights[0], err) != BVL_OK) return err->status;
    return bvl_copy_vector(&s->bias, &p->store, &b->weights[1], err);
}

static int64_t depthwise_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                const bvl_inputs *in) {
    const depthwise *s = r->state;
    (void)count, (void)in; /* one picture at a time */
    return s->each > 1 ? p->slots[r->dst].rows * s->shape.channels : 0;
}

static void depthwise_run(const bvl_record *r, const bvl_run *run) {
    const depthwise *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const int64_t C = s->shape.channels, m = s->each, taps = s->shape.kernel * s->shape.kernel;
    int64_t begin, end;
    bvl_share(s->shape.out_height, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = 0; i < run->count; i++) {
        const float *x = run->slots[r->src] + i * src->rows * src->ld;
        float *y = run->slots[r->dst] + i * dst->rows * dst->ld;
        for (int64_t j = 0; j < m; j++) { /* a worker's own lines, which nobody else reads */
            float *one = m == 1 ? y : run->shared;
            run->kernels->depthwise(one, x, s->weight + j * taps * C, s->bias + j * C, s->act, &s->shape,
                                    begin, end);
            for (int64_t t = begin * s->shape.out_width; m > 1 && t < end * s->shape.out_width; t++)
                for (int64_t c = 0; c < C; c++) y[t * dst->ld + c * m + j] = one[t * C + c];
        }
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_depthwise = {
    .name = "depthwise",
    .params = {"height", "width", "kernel", "stride", "pad", "out_height", "out_width", "activation", NULL},
    .weights = {"weight", "bias", NULL},
    .build = depthwise_build,
    .shared = depthwise_shared,
    .run = depthwise_run,
};

typedef struct {
    bvl_linear fc1, fc2;
    bvl_activation act;
} squeeze_excite;

enum { FC1_W, FC1_B, FC2_W, FC2_B };

static bvl_status squeeze_excite_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    const int64_t C = slot->cols;
    int64_t act;
    if (r->src != r->dst || slot->kind != BVL_FIXED_ROWS)
        return bvl_fail(err, BVL_INVALID, "squeeze_excite: expected the rows of a picture, in place");
    if (bvl_expect_whole(r->op, b, 0, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK ||
        bvl_expect(r->op, b, FC1_W, 2, -1, C, 0, 0, err) != BVL_OK)
        return err->status;
    const int64_t inner = b->weights[FC1_W].shape[0];
    if (bvl_expect(r->op, b, FC1_B, 1, inner, 0, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, FC2_W, 2, C, inner, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, FC2_B, 1, C, 0, 0, 0, err) != BVL_OK)
        return err->status;
    squeeze_excite *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for squeeze_excite");
    s->act = (bvl_activation)act;
    if (bvl_linear_init(&s->fc1, &p->store, p->kernels, BVL_FLOAT32, &b->weights[FC1_W], &b->weights[FC1_B],
                        b->threads, err) != BVL_OK)
        return err->status;
    return bvl_linear_init(&s->fc2, &p->store, p->kernels, BVL_FLOAT32, &b->weights[FC2_W],
                           &b->weights[FC2_B], b->threads, err);
}

static int64_t squeeze_excite_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                     const bvl_inputs *in) {
    const squeeze_excite *s = r->state;
    (void)p, (void)count, (void)in; /* one picture at a time: means, what is between, factors */
    return 2 * bvl_padded(s->fc1.K) + bvl_padded(s->fc1.N);
}

static void squeeze_excite_run(const bvl_record *r, const bvl_run *run) {
    const squeeze_excite *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_slot *slot = &run->program->slots[r->src];
    const int64_t C = s->fc1.K, ld = bvl_padded(C), inner = bvl_padded(s->fc1.N);
    float *mean = run->shared, *factor = mean + ld, *between = factor + ld;
    int64_t c0, c1, begin, end;
    bvl_share(C, run->team.tid, run->team.nt, &c0, &c1);
    bvl_share(slot->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = 0; i < run->count; i++) {
        float *x = run->slots[r->src] + i * slot->rows * slot->ld;
        for (int64_t c = c0; c < c1; c++) mean[c] = 0.0f;
        for (int64_t t = 0; t < slot->rows; t++) k->add(mean + c0, x + t * slot->ld + c0, c1 - c0);
        k->scale(mean + c0, 1.0f / (float)slot->rows, c1 - c0);
        bvl_barrier(run->team);
        bvl_linear_run(&s->fc1, k, between, inner, mean, ld, 1, (bvl_epilogue){.act = BVL_ACT_RELU},
                       run->team);
        bvl_barrier(run->team);
        bvl_linear_run(&s->fc2, k, factor, ld, between, inner, 1, (bvl_epilogue){0}, run->team);
        bvl_barrier(run->team);
        for (int64_t c = c0; c < c1; c++) factor[c] = 1.0f / (1.0f + expf(-factor[c]));
        bvl_barrier(run->team);
        for (int64_t t = begin; t < end; t++) {
            float *row = x + t * slot->ld;
            for (int64_t c = 0; c < C; c++) row[c] *= factor[c];
            if (s->act != BVL_ACT_NONE) k->activate(row, row, NULL, s->act, C);
        }
        bvl_barrier(run->team);
    }
}

const bvl_op bvl_op_squeeze_excite = {
    .name = "squeeze_excite",
    .params = {"activation", NULL},
    .weights = {"fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", NULL},
    .build = squeeze_excite_build,
    .shared = squeeze_excite_shared,
    .run = squeeze_excite_run,
};
