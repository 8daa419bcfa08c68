/* mel.c: lays out frames, filters and turns once a call, then runs the level's kernel over groups of frames.
 *
 * A centred sound is mirrored at its ends without repeating the end sample: x[-i] = x[i].
 */
#include "mel.h"

#include <math.h>
#include <string.h>

#include "../arena.h"
#include "../parallel.h"

enum { MOST_LENGTH = 1 << 16, MOST_MELS = 1 << 12 };

typedef struct {
    bvl_mel mel;
    const bvl_mel_settings *settings;
    const bvl_kernels *kernels;
    const float *x;
    float *out;
    int64_t samples, frames;
    double *memory;  /* of all workers */
    int64_t doubles; /* of one */
} mel_job;

int64_t bvl_mel_frame_count(const bvl_mel_settings *s, int64_t samples) {
    const int64_t padded = samples + (s->center ? s->frame / 2 * 2 : 0);
    return padded < s->frame ? 0 : 1 + (padded - s->frame) / s->hop;
}

/* Radix 4 as often as it divides, then 2, then odd primes. */
static void factorise(bvl_mel *mel) {
    int64_t n = mel->length;
    for (int r = 4; n > 1; r = r == 4 ? 2 : r == 2 ? 3 : r + 2)
        while (n % r == 0) {
            mel->radix[mel->passes++] = r;
            n /= r;
        }
}

/* Everything the kernel reads, in one block; NULL without memory. */
static void *lay_out(bvl_mel *mel, const bvl_mel_settings *s) {
    const int64_t bins = s->length / 2 + 1;
    double *at = bvl_alloc((size_t)(2 * s->length + s->frame + 2 * s->mels + bins * s->mels) * sizeof *at);
    if (!at) return NULL;
    void *const block = at;
    *mel = (bvl_mel){.length = s->length,
                     .frame = s->frame,
                     .mels = s->mels,
                     .remove_mean = s->remove_mean,
                     .amplitudes = s->amplitudes,
                     .emphasis = s->emphasis,
                     .floor = s->floor,
                     .scale = s->scale};
    factorise(mel);
    mel->turns = at;
    for (int64_t n = 0; n < s->length; n++) {
        const double angle = -2 * 3.14159265358979323846 * (double)n / (double)s->length;
        mel->turns[2 * n] = cos(angle);
        mel->turns[2 * n + 1] = sin(angle);
    }
    mel->window = memcpy(at += 2 * s->length, s->window, (size_t)s->frame * sizeof *at);
    mel->begin = (int64_t *)(void *)(at += s->frame);
    mel->count = mel->begin + s->mels;
    mel->weights = at += 2 * s->mels;
    for (int64_t m = 0; m < s->mels; m++) {
        int64_t first = 0, last = bins;
        while (first < bins && s->filters[first * s->mels + m] == 0) first++;
        while (last > first && s->filters[(last - 1) * s->mels + m] == 0) last--;
        mel->begin[m] = first < bins ? first : 0;
        mel->count[m] = last - first;
        for (int64_t k = first; k < last; k++) *at++ = s->filters[k * s->mels + m];
    }
    return block;
}

/* Sample i of the sound mirrored at its ends, as often as it takes. */
static float mirrored(const mel_job *j, int64_t i) {
    const int64_t n = j->samples, period = 2 * (n - 1);
    if (period == 0) return j->x[0];
    i = ((i % period) + period) % period;
    return j->x[i < n ? i : period - i];
}

/* Frame f, where it lies, or copied to `edge`. */
static const float *frame_at(const mel_job *j, int64_t f, float *edge) {
    const bvl_mel_settings *s = j->settings;
    const int64_t start = f * s->hop - (s->center ? s->frame / 2 : 0);
    if (start >= 0 && start + s->frame <= j->samples) return j->x + start;
    for (int64_t n = 0; n < s->frame; n++) edge[n] = mirrored(j, start + n);
    return edge;
}

static void work(void *context, bvl_team team) {
    const mel_job *j = context;
    const bvl_mel_settings *s = j->settings;
    const int lanes = j->kernels->mel_lanes;
    double *scratch = j->memory + team.tid * j->doubles;
    float *edges = (float *)(void *)(scratch + (5 * s->length + 2) * lanes / 2);
    const float *frames[BVL_MEL_LANES];
    float *out[BVL_MEL_LANES];
    int64_t begin, end;
    bvl_share((j->frames + lanes - 1) / lanes, team.tid, team.nt, &begin, &end);
    for (int64_t g = begin; g < end; g++) {
        for (int i = 0; i < lanes; i++) {
            const int64_t f = g * lanes + i;
            const bool there = f < j->frames;
            frames[i] = there ? frame_at(j, f, edges + i * s->frame) : frames[i - 1];
            out[i] = there ? j->out + f * (s->mels_first ? 1 : s->mels) : NULL;
        }
        j->kernels->mel_frames(out, s->mels_first ? j->frames : 1, frames, &j->mel, scratch);
    }
}

bvl_status bvl_mel_check(const bvl_mel_settings *s, int64_t samples, bvl_error *err) {
    if (s->length < 2 || s->length > MOST_LENGTH || s->frame < 1 || s->frame > s->length || s->hop < 1 ||
        s->hop > MOST_LENGTH || s->mels < 1 || s->mels > MOST_MELS)
        return bvl_fail(
            err, BVL_INVALID,
            "mel: frames of %lld, %lld apart, transforms of %lld, %lld filters: expected 2 to %d, 1 "
            "to %d filters, and no frame longer than its transform",
            (long long)s->frame, (long long)s->hop, (long long)s->length, (long long)s->mels, MOST_LENGTH,
            MOST_MELS);
    if (!(s->floor >= 1e-300 && s->floor < 1e300) || !isfinite(s->emphasis) || !isfinite(s->scale))
        return bvl_fail(err, BVL_INVALID,
                        "mel: floor: found %g, emphasis %g, scale %g: expected 1e-300 to 1e300, and numbers",
                        s->floor, s->emphasis, s->scale);
    if (samples < 1 || bvl_mel_frame_count(s, samples) < 1)
        return bvl_fail(err, BVL_INVALID, "mel: a sound of %lld samples, expected at least a frame, %lld",
                        (long long)samples, (long long)s->frame);
    return BVL_OK;
}

bvl_status bvl_mel_spectrogram(float *out, const float *x, int64_t samples, const bvl_mel_settings *s,
                               int threads, bvl_error *err) {
    mel_job j = {.settings = s, .kernels = bvl_kernels_active(), .x = x, .out = out, .samples = samples};
    const int lanes = j.kernels->mel_lanes;
    j.frames = bvl_mel_frame_count(s, samples);
    j.doubles = bvl_round_up((5 * s->length + 2) * lanes / 2 + (lanes * s->frame + 1) / 2, 8);
    threads = (int)BVL_MAX(1, BVL_MIN(threads, (j.frames + lanes - 1) / lanes));
    void *const plan = lay_out(&j.mel, s);
    j.memory = plan ? bvl_alloc((size_t)(threads * j.doubles) * sizeof(double)) : NULL;
    const bool done = j.memory != NULL;
    if (done) bvl_parallel(threads, work, &j);
    bvl_free(j.memory);
    bvl_free(plan);
    return done ? BVL_OK : bvl_fail(err, BVL_NO_MEMORY, "no memory for a spectrogram");
}
