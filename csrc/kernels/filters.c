/* filters.c: see filters.h; all arithmetic is Pillow's, in double. */
#include "filters.h"

#include <math.h>

const char *const bvl_filter_names[] = {"nearest", "lanczos", "bilinear",      "bicubic",
                                        "box",     "hamming", "bicubic_point", NULL};

static const double pi = 3.14159265358979323846;

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double bicubic(double x) { /* Keys, a = -1/2 */
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double box(double x) {
    return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

static double hamming(double x) {
    x = fabs(x);
    if (x == 0.0) return 1.0;
    if (x >= 1.0) return 0.0;
    x *= pi;
    return sin(x) / x * (0.54 + 0.46 * cos(x));
}

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= pi;
    return sin(x) / x;
}

static double lanczos(double x) {
    return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

static const struct {
    double (*weight)(double);
    double support;
} filters[] = {
    [BVL_LANCZOS] = {lanczos, 3.0}, [BVL_BILINEAR] = {bilinear, 1.0},
    [BVL_BICUBIC] = {bicubic, 2.0}, [BVL_BOX] = {box, 0.5},
    [BVL_HAMMING] = {hamming, 1.0}, [BVL_BICUBIC_POINT] = {bicubic, 2.0}}; /* whose weights are made apart */

/* By how much the filter is widened, where several input samples make one; *support: half its width then. */
static double widened(bvl_filter filter, double scale, double *support) {
    const double factor = scale < 1.0 ? 1.0 : scale;
    *support = filters[filter].support * factor;
    return factor;
}

int64_t bvl_filter_most(bvl_filter filter, int64_t in, int64_t out) {
    double support;
    widened(filter, (double)in / (double)out, &support);
    return (int64_t)ceil(support) * 2 + 1;
}

static int64_t point_weights(double *weights, int64_t in, int64_t out, int64_t at, int64_t *begin) {
    const double a = -0.75, center = ((double)at + 0.5) * ((double)in / (double)out) - 0.5;
    const int64_t first = (int64_t)floor(center) - 1;
    *begin = BVL_MIN(BVL_MAX(first, 0), in - 1);
    const int64_t last = BVL_MIN(BVL_MAX(first + 3, 0), in - 1);
    for (int64_t i = *begin; i <= last; i++) weights[i - *begin] = 0.0;
    for (int64_t i = first; i < first + 4; i++) {
        const double x = fabs(center - (double)i);
        weights[BVL_MIN(BVL_MAX(i, 0), in - 1) - *begin] +=
            x <= 1.0 ? ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                     : ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    }
    return last + 1 - *begin;
}

int64_t bvl_filter_weights(double *weights, bvl_filter filter, int64_t in, int64_t out, int64_t at,
                           int64_t *begin) {
    if (filter == BVL_BICUBIC_POINT) return point_weights(weights, in, out, at, begin);
    const double scale = (double)in / (double)out, center = ((double)at + 0.5) * scale;
    double support, sum = 0.0;
    const double inverse = 1.0 / widened(filter, scale, &support);
    *begin = BVL_MAX(0, (int64_t)(center - support + 0.5));
    const int64_t length = BVL_MIN(in, (int64_t)(center + support + 0.5)) - *begin;
    for (int64_t x = 0; x < length; x++) {
        weights[x] = filters[filter].weight(((double)(x + *begin) - center + 0.5) * inverse);
        sum += weights[x];
    }
    for (int64_t x = 0; x < length && sum != 0.0; x++) weights[x] /= sum;
    return length;
}
