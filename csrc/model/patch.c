/* patch.c: the stem of a picture, or of what a slot holds as one.
 *
 * patch_embed    x = act(windows(picture) W^T + b) (+ position), class tokens, if any, first
 *
 * A patch embedding has stride = kernel; a convolution has overlapping, padded windows. The picture is the
 * call's pixel_values, in each item one or several, or with src != dst the source slot, whose rows are the
 * lines of its channels, or with `channels_last` its pixels: a convolution along time is one whose kernel is
 * as wide as the picture.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

typedef struct {
    bvl_patches patches;
    bvl_linear linear;
    float *class_token;                   /* [class_tokens, D] or NULL */
    int64_t class_tokens, pictures, rows; /* pictures of an item, and rows of each in dst */
    float *position;                      /* [T, D], class tokens first, or NULL */
    int64_t ld;                           /* floats between two rows of windows */
    bvl_activation act;
} patch_embed;

enum {
    P_CHANNELS,
    P_HEIGHT,
    P_WIDTH,
    P_STRIDE_DOWN,
    P_STRIDE_RIGHT,
    P_PAD_TOP,
    P_PAD_LEFT,
    P_OUT_HEIGHT,
    P_OUT_WIDTH,
    P_ACT,
    P_PICTURES,
    P_SPARE,
    P_CHANNELS_LAST
};
enum { W_WEIGHT, W_BIAS, W_CLASS, W_POSITION };

bvl_status bvl_patches_build(const bvl_record *r, const bvl_build *b, const bvl_array *weight, int64_t ld,
                             bvl_patches *patches, bvl_error *err) {
    int64_t n[P_ACT];
    for (int i = 0; i < P_ACT; i++)
        if (bvl_expect_whole(r->op, b, i, i == P_PAD_TOP || i == P_PAD_LEFT ? 0 : 1, 1 << 20, &n[i], err) !=
            BVL_OK)
            return err->status;
    *patches = (bvl_patches){.channels = n[P_CHANNELS],
                             .height = n[P_HEIGHT],
                             .width = n[P_WIDTH],
                             .ld = ld ? ld : n[P_WIDTH],
                             .out_height = n[P_OUT_HEIGHT],
                             .out_width = n[P_OUT_WIDTH],
                             .kernel_height = weight->shape[2],
                             .kernel_width = weight->shape[3],
                             .stride_down = n[P_STRIDE_DOWN],
                             .stride_right = n[P_STRIDE_RIGHT],
                             .pad_top = n[P_PAD_TOP],
                             .pad_left = n[P_PAD_LEFT]};
    return BVL_OK;
}

/* The slots and the weights beside the product's, once the picture is known. */
static bvl_status patch_embed_check(const bvl_program *p, const bvl_record *r, const bvl_build *b,
                                    const bvl_patches *patches, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    const bvl_array *first = &b->weights[W_CLASS];
    const int64_t total = patches->out_height * patches->out_width + (!first->data       ? 0
                                                                      : first->rank == 2 ? first->shape[0]
                                                                                         : 1);
    if (r->src == r->dst && p->declared[BVL_PIXEL_VALUES].rank)
        return bvl_fail(err, BVL_INVALID, "patch_embed: expected one per program that reads pixel_values");
    const int64_t cols = patches->channels_last ? patches->channels : patches->width;
    const int64_t least = patches->height * (patches->channels_last ? patches->width : patches->channels);
    if (r->src != r->dst && (src->kind != BVL_FIXED_ROWS || src->rows < least || src->cols != cols))
        return bvl_fail(err, BVL_INVALID, "patch_embed: slot %s of %lld x %lld does not hold the picture",
                        src->name, (long long)src->rows, (long long)src->cols);
    int64_t act, pictures, spare;
    if (bvl_expect_whole(r->op, b, P_ACT, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_PICTURES, 1, r->src == r->dst ? 1 << 12 : 1, &pictures, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_SPARE, 0, 64, &spare, err) != BVL_OK)
        return err->status;
    const int64_t wanted = pictures * (total + spare);
    if (dst->kind != BVL_FIXED_ROWS || dst->rows != wanted)
        return bvl_fail(err, BVL_INVALID, "patch_embed: %lld rows, expected %lld", (long long)dst->rows,
                        (long long)wanted);
    if (b->weights[W_BIAS].data && bvl_expect(r->op, b, W_BIAS, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if (first->data && bvl_expect(r->op, b, W_CLASS, first->rank == 2 ? 2 : 1,
                                  first->rank == 2 ? -1 : dst->cols, dst->cols, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[W_POSITION].data) return bvl_expect(r->op, b, W_POSITION, 2, total, dst->cols, 0, 0, err);
    return BVL_OK;
}

/* The picture that windows are of, and the shape of the product's weight. */
static bvl_status picture_build(const bvl_program *p, const bvl_record *r, const bvl_build *b,
                                bvl_patches *patches, bvl_error *err) {
    const bvl_slot *src = &p->slots[r->src], *dst = &p->slots[r->dst];
    const bvl_array *weight = &b->weights[W_WEIGHT];
    const bool inner = r->src != r->dst;
    int64_t last;
    if (bvl_expect(r->op, b, W_WEIGHT, 4, dst->cols, -1, -1, -1, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_CHANNELS_LAST, 0, inner, &last, err) != BVL_OK ||
        bvl_patches_build(r, b, weight, inner ? src->ld : 0, patches, err) != BVL_OK)
        return err->status;
    if (!last) return bvl_expect(r->op, b, W_WEIGHT, 4, dst->cols, patches->channels, -1, -1, err);
    patches->channels_last = true;
    patches->kernel_height = weight->shape[1];
    patches->kernel_width = weight->shape[2];
    return bvl_expect(r->op, b, W_WEIGHT, 4, dst->cols, -1, -1, patches->channels, err);
}

static bvl_status patch_embed_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    const bvl_array *weight = &b->weights[W_WEIGHT];
    bvl_patches patches;
    if (picture_build(p, r, b, &patches, err) != BVL_OK ||
        patch_embed_check(p, r, b, &patches, err) != BVL_OK)
        return err->status;
    patch_embed *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for patch_embed");
    s->patches = patches;
    s->act = (bvl_activation)b->params[P_ACT];
    s->pictures = (int64_t)b->params[P_PICTURES];
    s->rows = dst->rows / s->pictures;
    s->class_tokens = s->rows - (int64_t)b->params[P_SPARE] - patches.out_height * patches.out_width;
    if (r->src == r->dst)
        p->declared[BVL_PIXEL_VALUES] =
            (bvl_declared){.name = "pixel_values",
                           .rank = 4,
                           .sizes = {{BVL_ITEMS, 0},
                                     {BVL_EXACTLY, s->pictures * patches.channels},
                                     {BVL_EXACTLY, patches.height},
                                     {BVL_EXACTLY, patches.width}},
                           .required = true};
    if (bvl_linear_init(&s->linear, &p->store, p->kernels, bvl_outer_precision(p, dst->rows), weight,
                        &b->weights[W_BIAS], b->threads, err) != BVL_OK)
        return err->status;
    s->ld = bvl_padded(s->linear.K);
    if (s->class_tokens && bvl_copy_vector(&s->class_token, &p->store, &b->weights[W_CLASS], err) != BVL_OK)
        return err->status;
    if (!b->weights[W_POSITION].data) return BVL_OK;
    return bvl_copy_vector(&s->position, &p->store, &b->weights[W_POSITION], err);
}

enum {
    ROWS_AT_ONCE = 512
}; /* windows of pictures taken together, so that the weights are read once for them */

static int64_t pictures_at_once(const patch_embed *s, int64_t count) {
    return BVL_MIN(count * s->pictures, BVL_MAX(1, ROWS_AT_ONCE / s->rows));
}

static int64_t patch_embed_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                  const bvl_inputs *in) {
    const patch_embed *s = r->state;
    (void)p, (void)in;
    return pictures_at_once(s, count) * s->rows * (s->ld + bvl_linear_operand(&s->linear));
}

/* Rows of x [pictures * T, D]: the class tokens in the first of each picture, positions added to all it has.
 */
static void finish_rows(const patch_embed *s, const bvl_run *run, float *x, const bvl_slot *dst,
                        int64_t pictures) {
    const int64_t placed = s->class_tokens + s->patches.out_height * s->patches.out_width;
    int64_t begin, end;
    bvl_share(pictures * s->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t t = i % s->rows;
        if (t < s->class_tokens)
            memcpy(x + i * dst->ld, s->class_token + t * dst->cols, (size_t)dst->cols * sizeof(float));
        if (s->position && t < placed)
            run->kernels->add(x + i * dst->ld, s->position + t * dst->cols, dst->cols);
    }
    bvl_barrier(run->team);
}

/* The rows of class tokens, and those to spare, go through the product as zeros, so that the rows of several
 * pictures are one matrix. */
static void patch_embed_run(const bvl_record *r, const bvl_run *run) {
    const patch_embed *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src], *dst = &run->program->slots[r->dst];
    const int64_t T = s->rows, most = pictures_at_once(s, run->count), total = run->count * s->pictures;
    const int64_t skip = s->class_tokens, last = skip + s->patches.out_height * s->patches.out_width;
    const bool inner = r->src != r->dst;
    const int64_t pixels =
        inner ? src->rows * src->ld : s->patches.channels * s->patches.height * s->patches.width;
    const float *in =
        inner ? run->slots[r->src] : run->inputs->pixel_values + run->first * s->pictures * pixels;
    float *windows = run->shared, *operand = windows + most * T * s->ld;
    for (int64_t i = 0; i < total; i += most) {
        const int64_t pictures = BVL_MIN(most, total - i);
        float *x = run->slots[r->dst] + i * T * dst->ld;
        int64_t ld = s->ld;
        for (int64_t n = 0; n < pictures; n++) {
            float *rows = windows + n * T * s->ld;
            if (run->team.tid == 0) {
                memset(rows, 0, (size_t)(skip * s->ld) * sizeof(float));
                memset(rows + last * s->ld, 0, (size_t)((T - last) * s->ld) * sizeof(float));
            }
            bvl_patch_rows(rows + skip * s->ld, s->ld, in + (i + n) * pixels, &s->patches, run->team);
        }
        bvl_barrier(run->team);
        const float *a = bvl_linear_load(&s->linear, operand, windows, &ld, pictures * T, run->team);
        bvl_linear_run(&s->linear, run->kernels, x, dst->ld, a, ld, pictures * T,
                       (bvl_epilogue){.act = s->act}, run->team);
        bvl_barrier(run->team);
        if (s->class_token || s->position) finish_rows(s, run, x, dst, pictures);
    }
}

const bvl_op bvl_op_patch_embed = {
    .name = "patch_embed",
    .params = {"channels", "height", "width", "stride_down", "stride_right", "pad_top", "pad_left",
               "out_height", "out_width", "activation", "pictures", "spare", "channels_last", NULL},
    .weights = {"weight", "bias", "class_token", "position", NULL},
    .build = patch_embed_build,
    .shared = patch_embed_shared,
    .run = patch_embed_run,
};
