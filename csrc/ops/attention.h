/* attention.h: softmax(scale Q K^T + bias) V for one item and one head. */
#ifndef BVL_ATTENTION_H
#define BVL_ATTENTION_H

#include "../kernels/kernels.h"

typedef struct {
    int64_t Tq, Tk, hd;
    int64_t ldq, ldkv, ldo; /* words of 32 bits between two tokens */
    float scale;
    bool causal;       /* query i sees keys 0 .. first + i */
    int64_t first;     /* place of the first query among the keys */
    int64_t prefix;    /* causal: keys that every query sees */
    const float *bias; /* [Tk], 0 or -inf per key, or NULL */
    /* [2 * reach + 1] or NULL: added to a score by the place of the key less that of the query, from -reach
     * to reach; what lies further off counts as that far */
    const float *relative;
    int64_t reach;
    int64_t sliding; /* a query sees keys at most so far from its place, 0: all */
    /* [Tq, Tk] or NULL: added to the score of each pair */
    const float *pairs;
    /* [Tq, Tk] or NULL: added to those, the same for every head; nothing without them */
    const float *apart;
    bool bf16;     /* q, k, v are rows of bfloat16, and so is every product */
    bool out_bf16; /* out is rows of bfloat16 */
} bvl_attention_shape;

/* Whether attention over heads of that size may run in bfloat16. */
bool bvl_attention_bf16(const bvl_kernels *kernels, bvl_precision precision, int64_t hd);

/* Words of the keys and values of one head, packed. */
int64_t bvl_attention_words(const bvl_kernels *kernels, bool bf16, int64_t Tk, int64_t hd);
/* packed[bvl_attention_words] from k[Tk, hd], v[Tk, hd] */
void bvl_attention_pack(const bvl_kernels *kernels, float *packed, const float *k, const float *v,
                        const bvl_attention_shape *shape);

/* Words of scratch one call needs, in either format. */
int64_t bvl_attention_scratch(const bvl_kernels *kernels, int64_t Tk, int64_t hd);

/* out[Tq, hd] from q[Tq, hd] and packed keys and values. A row whose keys are all masked gives zeros. */
void bvl_attention_packed(const bvl_kernels *kernels, float *out, const float *q, const float *packed,
                          const bvl_attention_shape *shape, float *scratch);
/* The same from k[Tk, hd], v[Tk, hd]. */
void bvl_attention(const bvl_kernels *kernels, float *out, const float *q, const float *k, const float *v,
                   const bvl_attention_shape *shape, float *scratch);

#endif
