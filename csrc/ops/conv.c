/* conv.c: a convolution over a picture is a product over its windows laid out as rows. */
#include "conv.h"

#include <string.h>

/* One window: channels x kernel_height lines of `width`, a constant where it is known, each copied where it
 * lies inside the picture. */
BVL_INLINE void copy_window(float *row, const float *picture, const bvl_patches *p, int64_t top, int64_t left,
                            const int64_t width) {
    const int64_t begin = BVL_MAX(0, -left), end = BVL_MIN(width, p->width - left);
    for (int64_t c = 0; c < p->channels; c++)
        for (int64_t i = 0; i < p->kernel_height; i++, row += width) {
            const int64_t line = top + i;
            const int64_t at = (c * p->height + line) * p->ld + left;
            if (line < 0 || line >= p->height || begin >= end) {
                memset(row, 0, (size_t)width * sizeof(float));
            } else if (end - begin == width) {
                memcpy(row, picture + at, (size_t)width * sizeof(float));
            } else {
                for (int64_t j = 0; j < width; j++) row[j] = j >= begin && j < end ? picture[at + j] : 0.0f;
            }
        }
}

/* One window of pixels whose channels lie side by side. */
static void copy_pixels(float *row, const float *picture, const bvl_patches *p, int64_t top, int64_t left) {
    const size_t bytes = (size_t)p->channels * sizeof(float);
    for (int64_t i = top; i < top + p->kernel_height; i++)
        for (int64_t j = left; j < left + p->kernel_width; j++, row += p->channels) {
            if (i < 0 || i >= p->height || j < 0 || j >= p->width)
                memset(row, 0, bytes);
            else
                memcpy(row, picture + (i * p->width + j) * p->ld, bytes);
        }
}

void bvl_patch_rows(float *rows, int64_t ld, const float *picture, const bvl_patches *p, bvl_team team) {
    int64_t begin, end;
    bvl_share(p->out_height * p->out_width, team.tid, team.nt, &begin, &end);
    for (int64_t r = begin; r < end; r++) {
        const int64_t top = r / p->out_width * p->stride_down - p->pad_top;
        const int64_t left = r % p->out_width * p->stride_right - p->pad_left;
        if (p->channels_last)
            copy_pixels(rows + r * ld, picture, p, top, left);
        else if (p->kernel_width == 3)
            copy_window(rows + r * ld, picture, p, top, left, 3);
        else
            copy_window(rows + r * ld, picture, p, top, left, p->kernel_width);
    }
}

void bvl_depthwise_run(const bvl_kernels *kernels, float *y, const float *x, const float *w,
                       const float *bias, bvl_activation act, const bvl_conv_shape *shape, bvl_team team) {
    int64_t r0, r1;
    bvl_share(shape->out_height, team.tid, team.nt, &r0, &r1);
    kernels->depthwise(y, x, w, bias, act, shape, r0, r1);
}
