/* resize_floats.c: antialiased resampling of pictures of floats, as torchvision does: across, then down, with
 * nothing rounded in between. Weights: kernels/filters.h.
 */
#include "../arena.h"
#include "resize.h"

/* The weights of all output samples of an axis, `most` apart. */
typedef struct {
    double *weights;
    int64_t *begin, *length, most;
} axis;

static void axis_free(axis *a) {
    bvl_free(a->weights);
    bvl_free(a->begin);
    bvl_free(a->length);
}

static bool axis_init(axis *a, int64_t in, int64_t out, bvl_filter filter) {
    a->most = bvl_filter_most(filter, in, out);
    a->weights = bvl_alloc_array((size_t)(out * a->most), sizeof *a->weights);
    a->begin = bvl_alloc_array((size_t)out, sizeof *a->begin);
    a->length = bvl_alloc_array((size_t)out, sizeof *a->length);
    if (!a->weights || !a->begin || !a->length) return false;
    for (int64_t i = 0; i < out; i++)
        a->length[i] = bvl_filter_weights(a->weights + i * a->most, filter, in, out, i, &a->begin[i]);
    return true;
}

/* y[n] = sum over t of weights[t] x[t * step + n] */
static void weigh(float *y, const float *x, int64_t step, int64_t n, const double *weights, int64_t length) {
    for (int64_t i = 0; i < n; i++) y[i] = 0.0f;
    for (int64_t t = 0; t < length; t++) {
        const float w = (float)weights[t];
        for (int64_t i = 0; i < n; i++) y[i] += w * x[t * step + i];
    }
}

bvl_status bvl_resize_floats(float *out, int64_t height, int64_t width, const float *x, int64_t from_height,
                             int64_t from_width, int64_t channels, bvl_filter filter, bvl_error *err) {
    const int64_t ld = width * channels;
    axis across = {0}, down = {0};
    float *lines = bvl_alloc_array((size_t)(from_height * ld), sizeof *lines);
    const bool ok = lines && axis_init(&across, from_width, width, filter) &&
                    axis_init(&down, from_height, height, filter);
    for (int64_t i = 0; ok && i < from_height; i++)
        for (int64_t j = 0; j < width; j++)
            weigh(lines + i * ld + j * channels, x + (i * from_width + across.begin[j]) * channels, channels,
                  channels, across.weights + j * across.most, across.length[j]);
    for (int64_t i = 0; ok && i < height; i++)
        weigh(out + i * ld, lines + down.begin[i] * ld, ld, ld, down.weights + i * down.most, down.length[i]);
    axis_free(&across);
    axis_free(&down);
    bvl_free(lines);
    return ok ? BVL_OK : bvl_fail(err, BVL_NO_MEMORY, "no memory to resize a picture");
}
