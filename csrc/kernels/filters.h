/* filters.h: the filters by which pictures and tables are resized, and their weights.
 *
 * An output sample is a weighted sum of the input samples under a filter of width support * max(scale, 1),
 * its weights normalised; scale = input size / output size. Method: Pillow, ImagingResample; torch's
 * antialiased interpolation is the same. BVL_BICUBIC_POINT is torch's bicubic without antialiasing: Keys'
 * kernel with a = -3/4, never widened, the samples at the edges repeated.
 */
#ifndef BVL_FILTERS_H
#define BVL_FILTERS_H

#include "../core.h"

/* Pillow's filters and their numbers, and one of torch's; the names are exported to Python as _C.FILTERS. */
typedef enum {
    BVL_LANCZOS = 1,
    BVL_BILINEAR,
    BVL_BICUBIC,
    BVL_BOX,
    BVL_HAMMING,
    BVL_BICUBIC_POINT
} bvl_filter;
extern const char *const bvl_filter_names[];

/* Weights that an output sample has at most. */
int64_t bvl_filter_most(bvl_filter filter, int64_t in, int64_t out);
/* The weights of output sample `at` of `out`, over input samples from *begin on; returns how many. */
int64_t bvl_filter_weights(double *weights, bvl_filter filter, int64_t in, int64_t out, int64_t at,
                           int64_t *begin);

#endif
