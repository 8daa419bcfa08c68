/* embed_patches.c: the stem of pictures of any size, given as they are or as their patches (NaViT; Dehghani
 * et al., 2023).
 *
 *   x[r] = class token, for the first rows; then patch W^T + b + position(row, column of the patch)
 *
 * Positions are a table over a grid of its own, resized to the picture's by a filter:
 *
 *   position(y, x) = sum over i, j of a_y[i] b_x[j] table[i, j]
 *
 * or two tables, of columns and of rows, position(y, x) = across[x] + down[y]; or angles, y f_y + x f_x, by
 * which attention turns queries and keys (axial rotary embedding); y and x count patches, or go from -1 to 1
 * over the picture. Class tokens are not turned.
 */
#include <math.h>
#include <string.h>

#include "../arena.h"
#include "../kernels/filters.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

enum {
    P_GRID_HEIGHT,
    P_GRID_WIDTH,
    P_FILTER,
    P_CHANNELS,
    P_PATCH_HEIGHT,
    P_PATCH_WIDTH,
    P_CENTRED,
    P_OFFSET,
    P_PER_AXIS
};
enum { W_WEIGHT, W_BIAS, W_CLASS, W_POSITION, W_ROTARY };

typedef struct {
    bvl_linear linear;
    int64_t lead;          /* class tokens */
    float *class_token;    /* [lead, D] */
    float *position;       /* [height, width, D], or `per_axis` [width + height, D]; or NULL */
    int64_t height, width; /* of the table's grid */
    bool per_axis;
    bvl_filter filter;
    float *rotary; /* [2, half] frequencies down and across, or NULL */
    int64_t half;
    bool centred;
    float offset;                                /* of the first patch, where they are counted */
    int64_t channels, patch_height, patch_width; /* of pictures; 0: their patches are given */
} embed_patches;

/* What tells rows apart: a table, or angles. */
static bvl_status positions_build(bvl_program *p, const bvl_record *r, const bvl_build *b, embed_patches *s,
                                  bvl_error *err) {
    const int64_t D = p->slots[r->dst].cols;
    int64_t filter;
    if (bvl_expect_whole(r->op, b, P_GRID_HEIGHT, 1, 1 << 16, &s->height, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_GRID_WIDTH, 1, 1 << 16, &s->width, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_FILTER, BVL_LANCZOS, BVL_BICUBIC_POINT, &filter, err) != BVL_OK)
        return err->status;
    s->filter = (bvl_filter)filter;
    s->centred = b->params[P_CENTRED] != 0;
    s->offset = (float)b->params[P_OFFSET];
    s->per_axis = b->params[P_PER_AXIS] != 0;
    if (s->per_axis && (s->patch_height || !b->weights[W_POSITION].data))
        return bvl_fail(err, BVL_INVALID,
                        "embed_patches: per_axis: expected a position, and patches that are given");
    const int64_t entries = s->per_axis ? s->width + s->height : s->height * s->width;
    if (b->weights[W_POSITION].data &&
        (bvl_expect(r->op, b, W_POSITION, 2, entries, D, 0, 0, err) != BVL_OK ||
         bvl_copy_vector(&s->position, &p->store, &b->weights[W_POSITION], err) != BVL_OK))
        return err->status;
    if (!b->weights[W_ROTARY].data) return BVL_OK;
    if (p->turns[0].half)
        return bvl_fail(err, BVL_INVALID,
                        "embed_patches: rotary: given, and another stem of the program has one");
    if (bvl_expect(r->op, b, W_ROTARY, 2, 2, -1, 0, 0, err) != BVL_OK) return err->status;
    s->half = b->weights[W_ROTARY].shape[1];
    p->turns[0] = (bvl_turns){.half = s->half, .kind = BVL_PATCH_ROWS};
    return bvl_copy_vector(&s->rotary, &p->store, &b->weights[W_ROTARY], err);
}

static void declare_pictures(bvl_declared *declared, const embed_patches *s) {
    const bvl_size items = {BVL_ITEMS, 0}, patches = {BVL_PATCHES, 0}, pair = {BVL_EXACTLY, 2};
    bvl_declared *pixels = &declared[BVL_PIXEL_VALUES];
    *pixels = (bvl_declared){.name = "pixel_values", .rank = 3, .required = true};
    pixels->sizes[0] = items;
    if (s->patch_height) {
        pixels->rank = 4;
        pixels->sizes[1] = (bvl_size){BVL_EXACTLY, s->channels};
        pixels->sizes[2] = (bvl_size){BVL_HEIGHT, s->patch_height};
        pixels->sizes[3] = (bvl_size){BVL_WIDTH, s->patch_width};
        return;
    }
    pixels->sizes[1] = patches;
    pixels->sizes[2] = (bvl_size){BVL_EXACTLY, s->linear.K};
    declared[BVL_SPATIAL_SHAPES] = (bvl_declared){
        .name = "spatial_shapes", .rank = 2, .sizes = {items, pair}, .integers = true, .required = true};
    if (s->per_axis) declared[BVL_SPATIAL_SHAPES].below = BVL_MIN(s->height, s->width) + 1;
    declared[BVL_PIXEL_ATTENTION_MASK] = (bvl_declared){
        .name = "pixel_attention_mask", .rank = 2, .sizes = {items, patches}, .integers = true};
}

static bvl_status embed_patches_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    const bvl_array *weight = &b->weights[W_WEIGHT];
    if (dst->kind != BVL_PATCH_ROWS || p->declared[BVL_PIXEL_VALUES].rank)
        return bvl_fail(err, BVL_INVALID, "embed_patches: expected one per program, into a slot of patches");
    embed_patches *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for embed_patches");
    s->lead = dst->rows;
    if (bvl_expect_whole(r->op, b, P_CHANNELS, 0, 1 << 10, &s->channels, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_PATCH_HEIGHT, 0, 1 << 10, &s->patch_height, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_PATCH_WIDTH, 0, 1 << 10, &s->patch_width, err) != BVL_OK)
        return err->status;
    const int64_t numbers = s->channels * s->patch_height * s->patch_width;
    if (bvl_expect(r->op, b, W_WEIGHT, 2, dst->cols, numbers ? numbers : -1, 0, 0, err) != BVL_OK ||
        (b->weights[W_BIAS].data && bvl_expect(r->op, b, W_BIAS, 1, dst->cols, 0, 0, 0, err) != BVL_OK) ||
        (s->lead && bvl_expect(r->op, b, W_CLASS, 2, s->lead, dst->cols, 0, 0, err) != BVL_OK))
        return err->status;
    if (bvl_linear_init(&s->linear, &p->store, p->kernels, bvl_outer_precision(p, 0), weight,
                        &b->weights[W_BIAS], b->threads, err) != BVL_OK ||
        (s->lead && bvl_copy_vector(&s->class_token, &p->store, &b->weights[W_CLASS], err) != BVL_OK) ||
        positions_build(p, r, b, s, err) != BVL_OK)
        return err->status;
    declare_pictures(p->declared, s);
    return BVL_OK;
}

static int64_t embed_patches_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                    const bvl_inputs *in) {
    const embed_patches *s = r->state;
    (void)p, (void)count;
    return in->patches * (bvl_linear_operand(&s->linear) + (s->patch_height ? bvl_padded(s->linear.K) : 0));
}

/* Doubles of the weights of one row and of one column of patches; a filter reaches no further than the grid.
 */
static int64_t embed_patches_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const embed_patches *s = r->state;
    (void)p, (void)in;
    return s->per_axis ? 0 : 2 * (s->height + s->width);
}

/* x[D] += position(row, col) of a picture of rows x cols patches; `weights` is scratch. */
static void add_position(const embed_patches *s, float *x, int64_t rows, int64_t cols, int64_t row,
                         int64_t col, double *weights) {
    const int64_t D = s->linear.N;
    double *down = weights, *right = weights + s->height;
    int64_t top, left;
    const int64_t height = bvl_filter_weights(down, s->filter, s->height, rows, row, &top);
    const int64_t width = bvl_filter_weights(right, s->filter, s->width, cols, col, &left);
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < width; j++) {
            const float w = (float)(down[i] * right[j]);
            const float *entry = s->position + ((top + i) * s->width + left + j) * D;
            for (int64_t d = 0; w != 0.0f && d < D; d++) x[d] += w * entry[d];
        }
}

/* turn[2 * half] = cosines and sines of patch (row, col) of a picture of rows x cols. */
static void turn_patch(const embed_patches *s, float *turn, int64_t rows, int64_t cols, int64_t row,
                       int64_t col) {
    float y = (float)row, x = (float)col;
    if (s->centred)
        y = 2 * ((y + 0.5f) / (float)rows) - 1, x = 2 * ((x + 0.5f) / (float)cols) - 1;
    else
        y += s->offset, x += s->offset;
    for (int64_t i = 0; i < s->half; i++) {
        const float angle = y * s->rotary[i] + x * s->rotary[s->half + i];
        turn[i] = cosf(angle);
        turn[s->half + i] = sinf(angle);
    }
}

/* The patches of item i as operand rows of the product, *ld apart; a barrier after it. */
static const float *load_patches(const embed_patches *s, const bvl_run *run, int64_t item, int64_t *ld) {
    const bvl_inputs *in = run->inputs;
    int64_t rows, cols;
    bvl_grid_of(in, item, &rows, &cols);
    const int64_t K = s->linear.K;
    float *operand = run->shared, *windows = operand + in->patches * bvl_linear_operand(&s->linear);
    const float *patches = in->pixel_values + item * in->patches * K;
    *ld = K;
    if (s->patch_height) {
        const bvl_patches sliding = {.channels = s->channels,
                                     .height = in->height,
                                     .width = in->width,
                                     .ld = in->width,
                                     .out_height = rows,
                                     .out_width = cols,
                                     .kernel_height = s->patch_height,
                                     .kernel_width = s->patch_width,
                                     .stride_down = s->patch_height,
                                     .stride_right = s->patch_width};
        *ld = bvl_padded(K);
        bvl_patch_rows(windows, *ld, in->pixel_values + item * s->channels * in->height * in->width, &sliding,
                       run->team);
        bvl_barrier(run->team);
        patches = windows;
    }
    return bvl_linear_load(&s->linear, operand, patches, ld, rows * cols, run->team);
}

static void embed_patches_run(const bvl_record *r, const bvl_run *run) {
    const embed_patches *s = r->state;
    const bvl_slot *dst = &run->program->slots[r->dst];
    for (int64_t i = 0; i < run->count; i++) {
        int64_t ld, begin, end, rows, cols;
        const int64_t before = bvl_rows_before(run, dst, i);
        float *x = run->slots[r->dst] + before * dst->ld, *first = x + s->lead * dst->ld;
        float *turns = run->turns[0] + before * 2 * s->half;
        bvl_grid_of(run->inputs, run->first + i, &rows, &cols);
        const float *a = load_patches(s, run, run->first + i, &ld);
        bvl_linear_run(&s->linear, run->kernels, first, dst->ld, a, ld, rows * cols, (bvl_epilogue){0},
                       run->team);
        bvl_barrier(run->team);
        bvl_share(s->lead + rows * cols, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t t = begin; t < end; t++) {
            const int64_t patch = t - s->lead;
            float *turn = turns + t * 2 * s->half;
            if (patch < 0) {
                memcpy(x + t * dst->ld, s->class_token + t * dst->cols, (size_t)dst->cols * sizeof(float));
                for (int64_t k = 0; k < s->half; k++) turn[k] = 1.0f, turn[s->half + k] = 0.0f;
                continue;
            }
            if (s->per_axis) {
                run->kernels->add(x + t * dst->ld, s->position + patch % cols * dst->cols, dst->cols);
                run->kernels->add(x + t * dst->ld, s->position + (s->width + patch / cols) * dst->cols,
                                  dst->cols);
            } else if (s->position)
                add_position(s, x + t * dst->ld, rows, cols, patch / cols, patch % cols,
                             (double *)(void *)run->local);
            if (s->half) turn_patch(s, turn, rows, cols, patch / cols, patch % cols);
        }
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_embed_patches = {
    .name = "embed_patches",
    .params = {"grid_height", "grid_width", "filter", "channels", "patch_height", "patch_width", "centred",
               "offset", "per_axis", NULL},
    .weights = {"weight", "bias", "class_token", "position", "rotary", NULL},
    .build = embed_patches_build,
    .shared = embed_patches_shared,
    .local = embed_patches_local,
    .run = embed_patches_run,
};
