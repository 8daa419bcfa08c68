/* state.h: keys and values that outlive a call.
 *
 * A context is what another input offers to cross-attention: the keys and values of one item (a picture's
 * tokens, a question's), for every block of the program that attends to it, packed as attention reads them.
 * It is made once, immutable, and shared by any number of items, calls and threads.
 *
 * A cache holds the keys and values of the tokens so far, for every causal block of a decoder. Each call
 * appends its tokens; one call at a time may use it.
 */
#ifndef BVL_STATE_H
#define BVL_STATE_H

#include <stdatomic.h>

#include "../kernels/kernels.h"

/* What cross-attention of a program needs: the same for all its blocks. layers 0: it has none. */
typedef struct {
    int64_t layers, heads, hd;
    bool bf16; /* keys and values are bfloat16 */
} bvl_context_shape;

typedef struct {
    bvl_context_shape shape;
    const bvl_kernels *kernels;
    int64_t rows;  /* tokens attended to */
    int64_t words; /* of one layer: heads * bvl_attention_words */
    float *memory; /* [layers, words] */
} bvl_context;

/* Adds one more layer of `heads` heads of `hd` to a shape; all layers are alike. */
bvl_status bvl_context_layer(bvl_context_shape *shape, int64_t heads, int64_t hd, bool bf16, const char *name,
                             bvl_error *err);
bvl_context *bvl_context_new(const bvl_context_shape *shape, const bvl_kernels *kernels, int64_t rows,
                             bvl_error *err);
void bvl_context_free(bvl_context *context);

typedef struct {
    const void *program;     /* whose blocks it belongs to */
    int64_t B, capacity;     /* items, tokens there is room for */
    int64_t length;          /* tokens so far, of every item */
    float *memory, *other;   /* [layers][B, capacity, words of the layer]; `other` is where reorder writes */
    int64_t layers, *before; /* [layers + 1] words of a token in the layers before each */
    atomic_flag busy;
} bvl_cache;

bvl_cache *bvl_cache_new(const void *program, int64_t layers, const int64_t *layer_words, int64_t B,
                         int64_t capacity, bvl_error *err);
void bvl_cache_free(bvl_cache *cache);
/* The keys and values of one item in one layer, one row a token. */
float *bvl_cache_rows(const bvl_cache *cache, int64_t layer, int64_t item);
/* Item i becomes a copy of what item from[i] was; from[B], each checked to be an item. */
bvl_status bvl_cache_reorder(bvl_cache *cache, const int64_t *from, bvl_error *err);

#endif
