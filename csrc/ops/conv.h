/* conv.h: patches of a picture as rows, and depthwise convolution over a team. */
#ifndef BVL_CONV_H
#define BVL_CONV_H

#include "../kernels/kernels.h"
#include "../parallel.h"

typedef struct {
    int64_t channels, height, width, ld; /* ld: floats between two lines, or two pixels */
    bool channels_last;                  /* picture [height, width, channels] */
    int64_t out_height, out_width, kernel_height, kernel_width, stride_down, stride_right, pad_top, pad_left;
} bvl_patches;

/* rows[out_height * out_width, channels * kernel_height * kernel_width] (ld apart) from picture [channels,
 * height, width]: row (i, j) is the window at (i, j) in the order of a convolution's weights; zeros outside.
 * Of a picture with its channels last, weights too have theirs last. */
void bvl_patch_rows(float *rows, int64_t ld, const float *picture, const bvl_patches *patches, bvl_team team);

/* y, x: rows are the pixels of [height, width]; a team splits the output's lines. */
void bvl_depthwise_run(const bvl_kernels *kernels, float *y, const float *x, const float *w,
                       const float *bias, bvl_activation act, const bvl_conv_shape *shape, bvl_team team);

#endif
