/* spectrogram.c: a log-mel spectrogram as a picture (Chen et al., 2022, HTS-AT).
 *
 * fold_spectrogram   x[t, f] = a[f] in[t, f] + b[f], a batch norm; stretched along time to parts * cols
 * frames where it is shorter, by cubic convolution (Keys, 1981) with both ends kept; then cut in parts that
 * lie one above the other: picture[part * mels + f, t] = x[part * cols + t, f]
 */
#include <math.h>

#include "../arena.h"
#include "ops.h"

typedef struct {
    float *scale, *shift; /* [mels] */
    int64_t channels, mels, parts;
} fold;

static bvl_status fold_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    const int64_t channels = (int64_t)b->params[0], parts = (int64_t)b->params[1];
    if (p->declared[BVL_PIXEL_VALUES].rank || dst->kind != BVL_FIXED_ROWS || channels < 1 || parts < 1 ||
        dst->rows % (channels * parts))
        return bvl_fail(
            err, BVL_INVALID,
            "fold_spectrogram: expected one per program, into a slot whose rows are a multiple of %lld",
            (long long)(channels * parts));
    const int64_t mels = dst->rows / (channels * parts);
    for (int i = 0; i < 2; i++)
        if (bvl_expect(r->op, b, i, 1, mels, 0, 0, 0, err) != BVL_OK) return err->status;
    fold *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for fold_spectrogram");
    s->channels = channels;
    s->mels = mels;
    s->parts = parts;
    p->declared[BVL_PIXEL_VALUES] = (bvl_declared){.name = "input_features",
                                                   .rank = 4,
                                                   .sizes = {{BVL_ITEMS, 0},
                                                             {BVL_EXACTLY, channels},
                                                             {BVL_AT_MOST, parts * dst->cols},
                                                             {BVL_EXACTLY, mels}},
                                                   .required = true};
    if (bvl_copy_vector(&s->scale, &p->store, &b->weights[0], err) != BVL_OK) return err->status;
    return bvl_copy_vector(&s->shift, &p->store, &b->weights[1], err);
}

/* Four weights of cubic convolution at t past the second of four samples, with the constant -3/4. */
static void cubic(float w[4], float t) {
    const float a = -0.75f, u = 1.0f - t;
    w[0] = ((a * (t + 1.0f) - 5.0f * a) * (t + 1.0f) + 8.0f * a) * (t + 1.0f) - 4.0f * a;
    w[1] = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
    w[2] = ((a + 2.0f) * u - (a + 3.0f)) * u * u + 1.0f;
    w[3] = ((a * (u + 1.0f) - 5.0f * a) * (u + 1.0f) + 8.0f * a) * (u + 1.0f) - 4.0f * a;
}

/* Frame t of `wide` out of `in` of `frames`, normed, to a column of the picture: rows ld apart. */
static void fold_frame(const fold *s, float *column, int64_t ld, const float *in, int64_t frames,
                       int64_t wide, int64_t t) {
    const int64_t mels = s->mels;
    float w[4];
    if (frames == wide) {
        for (int64_t f = 0; f < mels; f++) column[f * ld] = in[t * mels + f] * s->scale[f] + s->shift[f];
        return;
    }
    const float place = (float)(frames - 1) / (float)(wide - 1) * (float)t;
    const int64_t at = BVL_MIN((int64_t)floorf(place), frames - 1);
    cubic(w, place - (float)at);
    const float *row[4];
    for (int64_t k = 0; k < 4; k++) row[k] = in + BVL_MIN(BVL_MAX(at + k - 1, 0), frames - 1) * mels;
    for (int64_t f = 0; f < mels; f++) {
        const float x = w[0] * row[0][f] + w[1] * row[1][f] + w[2] * row[2][f] + w[3] * row[3][f];
        column[f * ld] = x * s->scale[f] + s->shift[f];
    }
}

static void fold_run(const bvl_record *r, const bvl_run *run) {
    const fold *s = r->state;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t frames = run->inputs->height, wide = s->parts * dst->cols;
    int64_t begin, end;
    bvl_share(run->count * s->channels * wide, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t t = i % wide, picture = i / wide, part = t / dst->cols;
        const float *in = run->inputs->pixel_values + (run->first * s->channels + picture) * frames * s->mels;
        float *column = run->slots[r->dst] + (picture * s->parts + part) * s->mels * dst->ld + t % dst->cols;
        fold_frame(s, column, dst->ld, in, frames, wide, t);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_fold_spectrogram = {
    .name = "fold_spectrogram",
    .params = {"channels", "parts", NULL},
    .weights = {"scale", "shift", NULL},
    .build = fold_build,
    .run = fold_run,
};
