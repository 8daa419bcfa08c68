/* embed_frames.c: the stem of spectrograms of several lengths: two convolutions of 3 x 3 windows, two apart,
 * each with a norm of its channels and a rectifier, then a product over all mels of a frame (Gemma 4's
 * sounds).
 *
 *   a[t, f] = max(0, norm(w1 * x around (2 t, 2 f)))    b[t, f] = max(0, norm(w2 * a around (2 t, 2 f)))
 *   y[t] = b[t, all f] W^T
 *
 * Beyond an item's frames x and a are zeros. A worker takes a few rows of y through all of it.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

enum { ROWS_AT_ONCE = 8, SIDE = 3, TAPS = SIDE * SIDE, STRIDE = 2, FRAMES_PER_ROW = STRIDE * STRIDE };
enum { P_MELS, P_EPS };
enum { W_FIRST, W_SECOND, W_NORM1, W_NORM2 = W_NORM1 + 2, W_LINEAR = W_NORM2 + 2 };

typedef struct {
    bvl_linear first, second, linear; /* [C1, 9], [C2, 9 * C1], [D, F2 * C2] */
    bvl_norm norm1, norm2;
    int64_t mels, mels1, mels2; /* before, between and after the convolutions */
} embed_frames;

static int64_t halved(int64_t n) {
    return (n + 1) / 2;
}

static bvl_status embed_frames_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    const bvl_array none = {0};
    int64_t mels;
    if (dst->kind != BVL_PATCH_ROWS || dst->rows || p->declared[BVL_PIXEL_VALUES].rank)
        return bvl_fail(err, BVL_INVALID,
                        "embed_frames: expected one per program, into a slot of patches alone");
    if (bvl_expect_whole(r->op, b, P_MELS, 1, 1 << 12, &mels, err) != BVL_OK ||
        bvl_expect(r->op, b, W_FIRST, 2, -1, TAPS, 0, 0, err) != BVL_OK)
        return err->status;
    const int64_t C1 = b->weights[W_FIRST].shape[0];
    if (bvl_expect(r->op, b, W_SECOND, 2, -1, TAPS * C1, 0, 0, err) != BVL_OK) return err->status;
    const int64_t C2 = b->weights[W_SECOND].shape[0], mels1 = halved(mels), mels2 = halved(mels1);
    embed_frames *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for embed_frames");
    s->mels = mels, s->mels1 = mels1, s->mels2 = mels2;
    const double eps = b->params[P_EPS];
    const bvl_precision precision = bvl_outer_precision(p, 0);
    if (bvl_expect(r->op, b, W_LINEAR, 2, dst->cols, mels2 * C2, 0, 0, err) != BVL_OK ||
        bvl_linear_init(&s->first, &p->store, p->kernels, precision, &b->weights[W_FIRST], &none, b->threads,
                        err) != BVL_OK ||
        bvl_linear_init(&s->second, &p->store, p->kernels, precision, &b->weights[W_SECOND], &none,
                        b->threads, err) != BVL_OK ||
        bvl_linear_init(&s->linear, &p->store, p->kernels, precision, &b->weights[W_LINEAR], &none,
                        b->threads, err) != BVL_OK ||
        bvl_norm_build(p, r, b, W_NORM1, C1, eps, false, &s->norm1, err) != BVL_OK ||
        bvl_norm_build(p, r, b, W_NORM2, C2, eps, false, &s->norm2, err) != BVL_OK)
        return err->status;
    p->frames_per_row = FRAMES_PER_ROW;
    p->declared[BVL_PIXEL_VALUES] =
        (bvl_declared){.name = "input_features",
                       .rank = 3,
                       .sizes = {{BVL_ITEMS, 0}, {BVL_FRAMES, FRAMES_PER_ROW}, {BVL_EXACTLY, mels}},
                       .required = true};
    p->declared[BVL_NUM_FRAMES] = (bvl_declared){
        .name = "num_frames", .rank = 1, .sizes = {{BVL_ITEMS, 0}}, .integers = true, .required = true};
    return BVL_OK;
}

/* Frames of a that ROWS_AT_ONCE rows of y read. */
enum { FRAMES_BETWEEN = STRIDE * (ROWS_AT_ONCE - 1) + SIDE };

/* Floats of scratch: windows of either convolution, operand rows, and what both give. */
static int64_t windows_words(const embed_frames *s) {
    return BVL_MAX(s->mels1 * bvl_padded(TAPS), ROWS_AT_ONCE * s->mels2 * bvl_padded(s->second.K));
}

static int64_t operand_words(const embed_frames *s) {
    return BVL_MAX(BVL_MAX(s->mels1 * bvl_linear_operand(&s->first),
                           ROWS_AT_ONCE * s->mels2 * bvl_linear_operand(&s->second)),
                   ROWS_AT_ONCE * bvl_linear_operand(&s->linear));
}

static int64_t embed_frames_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const embed_frames *s = r->state;
    (void)p, (void)in;
    return windows_words(s) + operand_words(s) + bvl_padded(FRAMES_BETWEEN * s->mels1 * s->first.N) +
           bvl_padded(ROWS_AT_ONCE * s->mels2 * s->second.N);
}

/* y[rows, N] = max(0, norm(linear(x))), by one worker. */
static void convolve(const bvl_linear *linear, const bvl_norm *norm, const bvl_kernels *k, float *y,
                     float *windows, int64_t ld, int64_t rows, float *operand) {
    const bvl_team alone = {0, 1, NULL};
    const float *a = bvl_linear_load(linear, operand, windows, &ld, rows, alone);
    bvl_linear_run(linear, k, y, linear->N, a, ld, rows, (bvl_epilogue){0}, alone);
    bvl_norm_run(norm, k, y, linear->N, y, linear->N, rows, alone);
    k->activate(y, y, NULL, BVL_ACT_RELU, rows * linear->N);
}

/* between[frame, mels1, C1]: frames [from, to) of a, zeros of those outside of [0, count); x are the item's
 * `frames` frames. */
static void first_convolution(const embed_frames *s, const bvl_kernels *k, float *between, const float *x,
                              int64_t frames, int64_t from, int64_t to, float *windows, float *operand) {
    const int64_t ld = bvl_padded(TAPS), each = s->mels1 * s->first.N, count = halved(frames);
    for (int64_t t = from; t < to; t++, between += each) {
        if (t < 0 || t >= count) {
            memset(between, 0, (size_t)each * sizeof(float));
            continue;
        }
        for (int64_t f = 0; f < s->mels1; f++)
            for (int64_t i = 0; i < TAPS; i++) {
                const int64_t at = STRIDE * t - 1 + i / SIDE, mel = STRIDE * f - 1 + i % SIDE;
                const bool inside = at >= 0 && at < frames && mel >= 0 && mel < s->mels;
                windows[f * ld + i] = inside ? x[at * s->mels + mel] : 0.0f;
            }
        convolve(&s->first, &s->norm1, k, between, windows, ld, s->mels1, operand);
    }
}

/* Rows [begin, end) of y of one item, at most ROWS_AT_ONCE. */
static void embed_rows(const embed_frames *s, const bvl_run *run, float *y, int64_t ldy, const float *x,
                       int64_t frames, int64_t begin, int64_t end) {
    const bvl_team alone = {0, 1, NULL};
    const int64_t C1 = s->first.N, C2 = s->second.N, ld = bvl_padded(s->second.K),
                  rows = (end - begin) * s->mels2;
    float *windows = run->local, *operand = windows + windows_words(s), *between = operand + operand_words(s);
    float *after = between + bvl_padded(FRAMES_BETWEEN * s->mels1 * C1);
    const int64_t from = STRIDE * begin - 1, to = STRIDE * (end - 1) + SIDE - 1;
    first_convolution(s, run->kernels, between, x, frames, from, to, windows, operand);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t tap = 0; tap < TAPS; tap++) {
            const int64_t t = STRIDE * (i / s->mels2) + tap / SIDE,
                          f = STRIDE * (i % s->mels2) - 1 + tap % SIDE;
            float *to_window = windows + i * ld + tap * C1;
            if (f < 0 || f >= s->mels1)
                memset(to_window, 0, (size_t)C1 * sizeof(float));
            else
                memcpy(to_window, between + (t * s->mels1 + f) * C1, (size_t)C1 * sizeof(float));
        }
    convolve(&s->second, &s->norm2, run->kernels, after, windows, ld, rows, operand);
    int64_t lda = s->mels2 * C2;
    const float *a = bvl_linear_load(&s->linear, operand, after, &lda, end - begin, alone);
    bvl_linear_run(&s->linear, run->kernels, y + begin * ldy, ldy, a, lda, end - begin, (bvl_epilogue){0},
                   alone);
}

static void embed_frames_run(const bvl_record *r, const bvl_run *run) {
    const embed_frames *s = r->state;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *dst = &run->program->slots[r->dst];
    for (int64_t i = 0; i < run->count; i++) {
        int64_t begin, end;
        const int64_t item = run->first + i, rows = bvl_item_rows(run, dst, i);
        float *y = run->slots[r->dst] + bvl_rows_before(run, dst, i) * dst->ld;
        bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t t = begin; t < end; t += ROWS_AT_ONCE)
            embed_rows(s, run, y, dst->ld, in->pixel_values + item * in->frames * s->mels,
                       in->num_frames[item], t, BVL_MIN(end, t + ROWS_AT_ONCE));
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_embed_frames = {
    .name = "embed_frames",
    .params = {"mels", "layer_norm_eps", NULL},
    .weights = {"first_weight", "second_weight", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias",
                "weight", NULL},
    .build = embed_frames_build,
    .local = embed_frames_local,
    .run = embed_frames_run,
};
