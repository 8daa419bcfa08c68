/* fuse.c: attentional feature fusion of the crops of a long sound into the whole (Dai et al., 2021; Wu et
 * al., 2023).
 *
 * fuse_crops   y = windows(crop) Wl^T + bl of each crop of the source, side by side as wide as x, then zeros
 *
 *              g = sigmoid(local(x + y) + whole(mean(x + y)))
 *
 *              x = 2 x g + 2 y (1 - g)
 *
 * local and whole are two products each with relu in between, batch norms folded into them. Only items that
 * the call marks are fused: the source's first channel is the whole sound, the others its crops.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

enum { CROP, LOCAL1 = 2, LOCAL2 = 4, WHOLE1 = 6, WHOLE2 = 8, LINEARS = 5 }; /* weights; biases follow them */

typedef struct {
    bvl_patches patches; /* of one crop */
    bvl_linear crop, local1, local2, whole1, whole2;
    int64_t crops, out_width; /* out_width: of x */
} fuse;

static bvl_status fuse_check(const bvl_program *p, const bvl_record *r, const bvl_build *b,
                             const bvl_patches *patches, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    if (p->declared[BVL_IS_LONGER].rank)
        return bvl_fail(err, BVL_INVALID, "fuse_crops: expected one per program");
    if (src->kind != BVL_FIXED_ROWS || dst->kind != BVL_FIXED_ROWS ||
        src->rows != (1 + patches->channels) * patches->height || src->cols != patches->width ||
        dst->rows % patches->out_height ||
        dst->rows / patches->out_height < patches->channels * patches->out_width)
        return bvl_fail(err, BVL_INVALID, "fuse_crops: slots %s and %s do not hold the pictures", src->name,
                        dst->name);
    if (bvl_expect(r->op, b, CROP + 1, 1, dst->cols, 0, 0, 0, err) != BVL_OK) return err->status;
    for (int i = LOCAL1; i <= WHOLE1; i += WHOLE1 - LOCAL1) {
        if (bvl_expect(r->op, b, i, 2, -1, dst->cols, 0, 0, err) != BVL_OK) return err->status;
        const int64_t narrow = b->weights[i].shape[0];
        if (bvl_expect(r->op, b, i + 1, 1, narrow, 0, 0, 0, err) != BVL_OK ||
            bvl_expect(r->op, b, i + 2, 2, dst->cols, narrow, 0, 0, err) != BVL_OK ||
            bvl_expect(r->op, b, i + 3, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
            return err->status;
    }
    return BVL_OK;
}

static bvl_status fuse_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    bvl_patches patches; /* its channels are the crops */
    if (bvl_expect(r->op, b, CROP, 4, dst->cols, 1, -1, -1, err) != BVL_OK ||
        bvl_patches_build(r, b, &b->weights[CROP], p->slots[r->src].ld, &patches, err) != BVL_OK ||
        fuse_check(p, r, b, &patches, err) != BVL_OK)
        return err->status;
    fuse *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for fuse_crops");
    s->crops = patches.channels;
    s->patches = patches;
    s->patches.channels = 1;
    s->out_width = dst->rows / patches.out_height;
    p->declared[BVL_IS_LONGER] = (bvl_declared){.name = "is_longer",
                                                .rank = 2,
                                                .sizes = {{BVL_ITEMS, 0}, {BVL_EXACTLY, 1}},
                                                .integers = true,
                                                .required = true};
    bvl_linear *const linears[] = {&s->crop, &s->local1, &s->local2, &s->whole1, &s->whole2};
    const bvl_precision precision = bvl_outer_precision(p, dst->rows);
    for (int i = 0; i < LINEARS; i++)
        if (bvl_linear_init(linears[i], &p->store, p->kernels, i < 3 ? precision : BVL_FLOAT32,
                            &b->weights[2 * i], &b->weights[2 * i + 1], b->threads, err) != BVL_OK)
            return err->status;
    return BVL_OK;
}

/* Floats of each part of the scratch: windows, or the operand of a product; crops; their sum with x; gates.
 */
static void parts(const fuse *s, const bvl_slot *dst, int64_t *windows, int64_t *narrow, int64_t *operand) {
    *windows = s->patches.out_height * s->patches.out_width * bvl_padded(s->crop.K);
    *narrow = bvl_padded(s->local1.N);
    *operand = BVL_MAX(dst->rows * BVL_MAX(bvl_linear_operand(&s->local1), bvl_linear_operand(&s->local2)),
                       s->patches.out_height * s->patches.out_width * bvl_linear_operand(&s->crop));
}

static int64_t fuse_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    const fuse *s = r->state;
    const bvl_slot *dst = &p->slots[r->dst];
    int64_t windows, narrow, operand;
    parts(s, dst, &windows, &narrow, &operand);
    (void)count, (void)in; /* one item at a time */
    return windows + operand + dst->rows * (2 * dst->ld + narrow) + 2 * dst->ld + bvl_padded(s->whole1.N);
}

/* y[rows, D]: the crops of one item side by side, zeros where they end. */
static void crops_run(const fuse *s, const bvl_run *run, const bvl_slot *dst, const float *picture, float *y,
                      float *windows, float *products, float *operand) {
    const int64_t D = dst->cols, ldw = bvl_padded(s->crop.K),
                  n = s->patches.out_height * s->patches.out_width;
    int64_t begin, end;
    bvl_share(dst->rows, run->team.tid, run->team.nt, &begin, &end);
    memset(y + begin * dst->ld, 0, (size_t)((end - begin) * dst->ld) * sizeof(float));
    for (int64_t c = 0; c < s->crops; c++) {
        int64_t ld = ldw;
        bvl_barrier(run->team);
        bvl_patch_rows(windows, ldw, picture + (1 + c) * s->patches.height * s->patches.ld, &s->patches,
                       run->team);
        bvl_barrier(run->team);
        const float *a = bvl_linear_load(&s->crop, operand, windows, &ld, n, run->team);
        bvl_linear_run(&s->crop, run->kernels, products, dst->ld, a, ld, n, (bvl_epilogue){0}, run->team);
        bvl_barrier(run->team);
        bvl_share(n, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t i = begin; i < end; i++) {
            const int64_t line = i / s->patches.out_width,
                          at = c * s->patches.out_width + i % s->patches.out_width;
            memcpy(y + (line * s->out_width + at) * dst->ld, products + i * dst->ld,
                   (size_t)D * sizeof(float));
        }
    }
    bvl_barrier(run->team);
}

/* out[rows, D] = second(relu(first(x))), not gated yet; all rows of the team. */
static void squeeze(const bvl_linear *first, const bvl_linear *second, const bvl_run *run, float *out,
                    int64_t ldo, const float *x, int64_t ldx, int64_t rows, float *narrow, float *operand) {
    int64_t ld = ldx, ldn = bvl_padded(first->N);
    const float *a = bvl_linear_load(first, operand, x, &ld, rows, run->team);
    bvl_linear_run(first, run->kernels, narrow, ldn, a, ld, rows, (bvl_epilogue){.act = BVL_ACT_RELU},
                   run->team);
    bvl_barrier(run->team);
    a = bvl_linear_load(second, operand, narrow, &ldn, rows, run->team);
    bvl_linear_run(second, run->kernels, out, ldo, a, ldn, rows, (bvl_epilogue){0}, run->team);
    bvl_barrier(run->team);
}

static void fuse_run(const bvl_record *r, const bvl_run *run) {
    const fuse *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const int64_t rows = dst->rows, D = dst->cols, ld = dst->ld;
    int64_t size, width, operands, begin, end;
    parts(s, dst, &size, &width, &operands);
    float *windows = run->shared, *operand = windows + size, *y = operand + operands, *sum = y + rows * ld,
          *narrow = sum + rows * ld, *mean = narrow + rows * width, *whole = mean + ld, *few = whole + ld;
    for (int64_t i = 0; i < run->count; i++) {
        if (!run->inputs->is_longer[run->first + i]) continue;
        float *x = run->slots[r->dst] + i * rows * ld;
        crops_run(s, run, dst, run->slots[r->src] + i * src->rows * src->ld, y, windows, sum, operand);
        bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t t = begin; t < end; t++) {
            memcpy(sum + t * ld, x + t * ld, (size_t)D * sizeof(float));
            k->add(sum + t * ld, y + t * ld, D);
        }
        bvl_barrier(run->team);
        if (run->team.tid == 0) bvl_mean_rows(k, mean, sum, ld, rows, D, NULL);
        bvl_barrier(run->team);
        squeeze(&s->whole1, &s->whole2, run, whole, ld, mean, ld, 1, few, operand);
        squeeze(&s->local1, &s->local2, run, sum, ld, sum, ld, rows, narrow, operand);
        for (int64_t t = begin; t < end; t++) { /* g = (1 + h) / 2 with h = tanh of half the sum */
            float *h = sum + t * ld, *a = x + t * ld;
            const float *b = y + t * ld;
            k->add(h, whole, D);
            k->scale(h, 0.5f, D);
            k->activate(h, h, NULL, BVL_ACT_TANH, D);
            for (int64_t j = 0; j < D; j++) a[j] = a[j] + b[j] + h[j] * (a[j] - b[j]);
        }
        bvl_barrier(run->team);
    }
}

const bvl_op bvl_op_fuse_crops = {
    .name = "fuse_crops",
    .params = {"crops", "height", "width", "stride_down", "stride_right", "pad_top", "pad_left", "out_height",
               "out_width", NULL},
    .weights = {"crop_weight", "crop_bias", "local1_weight", "local1_bias", "local2_weight", "local2_bias",
                "whole1_weight", "whole1_bias", "whole2_weight", "whole2_bias", NULL},
    .build = fuse_build,
    .shared = fuse_shared,
    .run = fuse_run,
};
