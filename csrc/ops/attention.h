/* attention.h: softmax(scale Q K^T + bias) V for one item and one head. */
#ifndef BVL_ATTENTION_H
#define BVL_ATTENTION_H

#include "../kernels/kernels.h"

typedef struct {
    int64_t Tq, Tk, hd;
    int64_t ldq, ldkv, ldo; /* words of 32 bits between two tokens */
    float scale;
    bool causal;       /* token i sees keys 0 .. i */
    int64_t first;     /* number of the first query */
    const float *bias; /* [Tk], 0 or -inf per key, or NULL */
    bool bf16;         /* q, k, v are rows of bfloat16, and so is every product */
    bool out_bf16;     /* out is rows of bfloat16 */
} bvl_attention_shape;

/* Whether attention over heads of that size may run in bfloat16. */
bool bvl_attention_bf16(const bvl_kernels *kernels, bvl_precision precision, int64_t hd);

/* Words of scratch one call needs, in either format. */
int64_t bvl_attention_scratch(const bvl_kernels *kernels, int64_t Tk, int64_t hd);

/* out[Tq, hd] from q[Tq, hd], k[Tk, hd], v[Tk, hd]. A row whose keys are all masked gives zeros. */
void bvl_attention(const bvl_kernels *kernels, float *out, const float *q, const float *k, const float *v,
                   const bvl_attention_shape *shape, float *scratch);

#endif
