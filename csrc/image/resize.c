/* resize.c: antialiased resampling of 8-bit pictures, bit-equal to Pillow's.
 *
 * An output sample is a weighted sum of the input samples under a filter of width support * max(scale, 1):
 * weights are computed in double, normalised, rounded to 22 fraction bits; sums are in int32, rounded half up
 * and clamped to 0..255. Two passes, the bytes of one feeding the other; which comes first changes single
 * bits, and follows Pillow 13 as observed: vertical when it drops more than twice as many lines as the
 * horizontal pass drops columns. Only what the crop keeps is computed. Method: Pillow, ImagingResample.
 */
#include "resize.h"

#include <string.h>

#include "../arena.h"
#include "../kernels/kernels.h"

static void taps_free(bvl_taps *a) {
    bvl_free(a->words);
    bvl_free(a->begin);
    bvl_free(a->length);
}

/* Taps of output samples [first, first + count) along one axis. */
static bool taps_init(bvl_taps *a, const bvl_kernels *kernels, int64_t in, int64_t out, bvl_filter filter,
                      int64_t first, int64_t count) {
    a->groups = (bvl_filter_most(filter, in, out) + 3) / 4;
    double *exact = bvl_alloc_array((size_t)(4 * a->groups), sizeof *exact);
    int32_t *weights = bvl_alloc_array((size_t)(4 * a->groups), sizeof *weights);
    a->words = bvl_alloc_array((size_t)(count * a->groups), 4 * sizeof *a->words);
    a->begin = bvl_alloc_array((size_t)count, sizeof *a->begin);
    a->length = bvl_alloc_array((size_t)count, sizeof *a->length);
    const bool ok = exact && weights && a->words && a->begin && a->length;
    for (int64_t i = 0; ok && i < count; i++) {
        a->length[i] = bvl_filter_weights(exact, filter, in, out, first + i, &a->begin[i]);
        memset(weights, 0, (size_t)(4 * a->groups) * sizeof *weights);
        for (int64_t x = 0; x < a->length[i]; x++) { /* rounded to whole numbers */
            const double w = exact[x] * (1 << BVL_RESAMPLE_BITS);
            weights[x] = (int32_t)(w < 0 ? -0.5 + w : 0.5 + w);
        }
        for (int64_t g = 0; g < a->groups; g++)
            kernels->resample_pack(a->words + (i * a->groups + g) * 4, weights + 4 * g);
    }
    bvl_free(exact);
    bvl_free(weights);
    if (!ok) taps_free(a);
    return ok;
}

/* What of the window lies inside the resized picture, and where it goes in the output. */
typedef struct {
    int64_t top, left, height, width; /* in the resized picture */
    int64_t out_top, out_left;
} inside;

static inside clip_window(const bvl_geometry *g) {
    inside in = {BVL_MAX(0, g->top), BVL_MAX(0, g->left), 0, 0, BVL_MAX(0, -g->top), BVL_MAX(0, -g->left)};
    in.height = BVL_MAX(0, BVL_MIN(g->height, g->top + g->out_height) - in.top);
    in.width = BVL_MAX(0, BVL_MIN(g->width, g->left + g->out_width) - in.left);
    return in;
}

enum { PAST_THE_END = 16 + 3 * 4 }; /* bytes the horizontal kernel may read after a line */

/* Lines [first, first + count) resampled by `a`; the picture's last ones go through a copy with room after
 * it. */
static bool resample_lines(uint8_t *lines, const bvl_kernels *kernels, const bvl_picture *p,
                           const bvl_taps *a, int64_t width, int64_t first, int64_t count) {
    const int64_t bytes = p->width * p->channels, ld = width * p->channels;
    const int64_t unsafe = (PAST_THE_END + p->stride - 1) / p->stride;
    const int64_t safe = BVL_MAX(0, BVL_MIN(count, p->height - unsafe - first));
    kernels->resample_horizontal(lines, ld, p->pixels + first * p->stride, p->stride, safe, a, width,
                                 p->channels);
    if (safe == count) return true;
    uint8_t *copy = bvl_alloc_array(1, (size_t)bytes + PAST_THE_END);
    for (int64_t i = safe; copy && i < count; i++) {
        memcpy(copy, p->pixels + (first + i) * p->stride, (size_t)bytes);
        kernels->resample_horizontal(lines + i * ld, ld, copy, bytes, 1, a, width, p->channels);
    }
    bvl_free(copy);
    return copy != NULL;
}

/* A pass over lines [first, first + count) of the picture: columns [in->left, + in->width) of the result,
 * resampled horizontally or only cropped. */
static bool horizontal_pass(uint8_t *lines, const bvl_kernels *kernels, const bvl_picture *p, int64_t width,
                            bvl_filter filter, const inside *in, int64_t first, int64_t count) {
    const int64_t bytes = in->width * p->channels;
    if (width == p->width) {
        for (int64_t i = 0; i < count; i++)
            memcpy(lines + i * bytes, p->pixels + (first + i) * p->stride + in->left * p->channels,
                   (size_t)bytes);
        return true;
    }
    bvl_taps a = {0};
    if (!taps_init(&a, kernels, p->width, width, filter, in->left, in->width)) return false;
    const bool ok = resample_lines(lines, kernels, p, &a, in->width, first, count);
    taps_free(&a);
    return ok;
}

/* Output lines of a vertical pass: line i of y (ld apart, `bytes` wide) from the lines of x that `a` names,
 * the first of which is number `first`. */
static bool vertical_pass(uint8_t *y, int64_t ld, const bvl_kernels *kernels, const uint8_t *x,
                          int64_t stride, const bvl_taps *a, int64_t first, int64_t count, int64_t bytes) {
    const uint8_t **rows = bvl_alloc_array((size_t)(4 * a->groups), sizeof *rows);
    if (!rows) return false;
    for (int64_t i = 0; i < count; i++) {
        const int64_t groups = (a->length[i] + 3) / 4;
        for (int64_t t = 0; t < 4 * groups; t++) /* past the last tap weights are zero: any line will do */
            rows[t] = x + (a->begin[i] - first + BVL_MIN(t, a->length[i] - 1)) * stride;
        kernels->resample_vertical(y + i * ld, rows, a->words + i * a->groups * 4, groups, bytes);
    }
    bvl_free((void *)rows);
    return true;
}

/* The part of the window that lies in the resized picture, both passes; y has lines ld apart. */
static bool resample(uint8_t *y, int64_t ld, const bvl_picture *p, const bvl_geometry *g, const inside *in) {
    const bvl_kernels *kernels = bvl_kernels_active(); /* asked once: taps are in the form of a level */
    const int64_t bytes = in->width * p->channels;
    if (g->height == p->height) {
        uint8_t *lines = bvl_alloc_array((size_t)in->height, (size_t)bytes);
        const bool ok =
            lines && horizontal_pass(lines, kernels, p, g->width, g->filter, in, in->top, in->height);
        for (int64_t i = 0; ok && i < in->height; i++) memcpy(y + i * ld, lines + i * bytes, (size_t)bytes);
        bvl_free(lines);
        return ok;
    }
    bvl_taps a = {0};
    if (!taps_init(&a, kernels, p->height, g->height, g->filter, in->top, in->height)) return false;
    const int64_t first = a.begin[0], last = a.begin[in->height - 1] + a.length[in->height - 1];
    const bool vertical_first = g->height < p->height && p->height - g->height > 2 * (p->width - g->width);
    const int64_t whole = p->width * p->channels;
    uint8_t *lines = bvl_alloc_array((size_t)(vertical_first ? in->height : last - first),
                                     (size_t)(vertical_first ? whole : bytes));
    bool ok = lines != NULL;
    if (ok && vertical_first) {
        const bvl_picture shrunk = {lines, in->height, p->width, p->channels, whole};
        uint8_t *narrow = bvl_alloc_array((size_t)in->height, (size_t)bytes);
        ok = narrow && vertical_pass(lines, whole, kernels, p->pixels, p->stride, &a, 0, in->height, whole) &&
             horizontal_pass(narrow, kernels, &shrunk, g->width, g->filter, in, 0, in->height);
        for (int64_t i = 0; ok && i < in->height; i++) memcpy(y + i * ld, narrow + i * bytes, (size_t)bytes);
        bvl_free(narrow);
    } else if (ok) {
        ok = horizontal_pass(lines, kernels, p, g->width, g->filter, in, first, last - first) &&
             vertical_pass(y, ld, kernels, lines, bytes, &a, first, in->height, bytes);
    }
    bvl_free(lines);
    taps_free(&a);
    return ok;
}

bvl_status bvl_resize(uint8_t *out, const bvl_picture *p, const bvl_geometry *g, bvl_error *err) {
    const inside in = clip_window(g);
    const int64_t ld = g->out_width * p->channels;
    memset(out, 0, (size_t)(g->out_height * ld));
    if (in.height < 1 || in.width < 1) return BVL_OK;
    if (resample(out + in.out_top * ld + in.out_left * p->channels, ld, p, g, &in)) return BVL_OK;
    return bvl_fail(err, BVL_NO_MEMORY, "no memory to resize a picture");
}

bvl_status bvl_preprocess(float *out, const bvl_picture *p, const bvl_geometry *g, const float *table,
                          int64_t channels, bvl_error *err) {
    const int64_t pixels = g->out_height * g->out_width, C = p->channels;
    uint8_t *bytes = bvl_alloc_array((size_t)pixels, (size_t)C);
    if (!bytes) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %lld pixels", (long long)pixels);
    const bvl_status status = bvl_resize(bytes, p, g, err);
    for (int64_t c = 0; status == BVL_OK && c < channels; c++)
        for (int64_t i = 0; i < pixels; i++) out[c * pixels + i] = table[c * 256 + bytes[i * C + c]];
    bvl_free(bytes);
    return status;
}
