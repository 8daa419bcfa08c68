/* resize.h: 8-bit pictures to model input: resize, crop, rescale and normalise. */
#ifndef BVL_RESIZE_H
#define BVL_RESIZE_H

#include "../kernels/filters.h"

/* A borrowed picture, [height, width, channels] with contiguous pixels. */
typedef struct {
    const uint8_t *pixels;
    int64_t height, width, channels; /* channels 1 to 4 */
    int64_t stride;                  /* bytes between two lines */
} bvl_picture;

/* out[out_height, out_width] is the window at (top, left) of the picture resized to
 * [height, width]; what lies outside it is black (0 before rescaling). */
typedef struct {
    int64_t height, width;
    bvl_filter filter;
    int64_t top, left, out_height, out_width;
} bvl_geometry;

/* The window as bytes, out [out_height, out_width, channels]. Bit-equal to Pillow's resize and crop. */
bvl_status bvl_resize(uint8_t *out, const bvl_picture *picture, const bvl_geometry *geometry, bvl_error *err);

/* The window as floats, out [channels, out_height, out_width] = table[channel][byte] of the picture's first
 * channels; the 256-entry tables hold rescale and normalise, so the result is bit-equal to whatever formula
 * filled them. */
bvl_status bvl_preprocess(float *out, const bvl_picture *picture, const bvl_geometry *geometry,
                          const float *table, int64_t channels, bvl_error *err);

/* out[height, width, channels] from x[from_height, from_width, channels], as torchvision does
 * (resize_floats.c).
 */
bvl_status bvl_resize_floats(float *out, int64_t height, int64_t width, const float *x, int64_t from_height,
                             int64_t from_width, int64_t channels, bvl_filter filter, bvl_error *err);

#endif
