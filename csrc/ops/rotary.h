/* rotary.h: rotary position embedding (Su et al., 2021) of queries and keys. */
#ifndef BVL_ROTARY_H
#define BVL_ROTARY_H

#include "../core.h"

/* turn[2 * half] = cos(angle), then the sines, of each of `half` angles: the sum over `axes` of the position
 * along each [axes], times its frequencies [axes, half] */
void bvl_rotary_turn(float *turn, const int64_t *positions, int64_t axes, const float *frequencies,
                     int64_t half);

/* In each of `heads` runs of hd elements of a row, element i < half and element i + half are turned as a
 * point of the plane by angle i; what follows them stays. bf16: the row is of bfloat16. */
void bvl_rotary_run(float *row, bool bf16, int64_t heads, int64_t hd, const float *turn, int64_t half);

#endif
