/* inputs.h: what a call gives a program. Stems declare what they take; all of it is checked in one place.
 *
 * A size of an input is fixed, or one of the call: B items, N patches, L tokens, those with the tokens before
 * them in a cache, or rows of features, which may be what L counts.
 */
#ifndef BVL_INPUTS_H
#define BVL_INPUTS_H

#include "state.h"

typedef enum {
    BVL_PIXEL_VALUES = 0,
    BVL_SPATIAL_SHAPES,
    BVL_PIXEL_ATTENTION_MASK,
    BVL_NUM_FRAMES,
    BVL_IS_LONGER,
    BVL_FEATURES,
    BVL_INPUT_IDS,
    BVL_ATTENTION_MASK,
    BVL_POSITION_IDS,
    BVL_TOKEN_TYPE_IDS,
    BVL_INPUT_COUNT
} bvl_input;

typedef enum {
    BVL_EXACTLY = 0,
    BVL_AT_MOST, /* 1 to so many */
    BVL_ITEMS,
    BVL_PATCHES, /* room for those of the largest picture */
    BVL_FRAMES,  /* of the longest sound, of which `count` make a row */
    BVL_HEIGHT,  /* of all pictures, in patches of `count` lines */
    BVL_WIDTH,
    BVL_TOKENS,
    BVL_ALL_TOKENS, /* with those of the cache */
    BVL_ROWS,
    BVL_TOKENS_AFTER /* rows that are tokens, after `count` others */
} bvl_size_kind;

typedef struct {
    bvl_size_kind kind;
    int64_t count;
} bvl_size;

/* An input that a program takes; rank 0: it does not. */
typedef struct {
    const char *name; /* in the dictionary of a call */
    int rank;
    bvl_size sizes[BVL_MAX_RANK];
    bool integers, required; /* the others are float32 */
    int64_t below;           /* integers are from 0 up to this; 0: any */
} bvl_declared;

/* What was given as an input: data NULL where nothing was. */
typedef struct {
    const void *data;
    int rank;
    int64_t shape[BVL_MAX_RANK];
} bvl_argument;

/* What one call gives a program; arrays are borrowed. */
typedef struct {
    int64_t B, L;
    /* [B, channels, height, width], or patches [B, N, D], or frames of sounds [B, frames, mels], or NULL */
    const float *pixel_values;
    int64_t height, width;               /* of pixel_values */
    int64_t patches;                     /* N, or 0 */
    int64_t grid_height, grid_width;     /* patches of each picture where all are of one size, or 0 */
    int64_t frames;                      /* of the longest sound, or 0 */
    const int64_t *num_frames;           /* [B] of each sound, or NULL */
    const int64_t *spatial_shapes;       /* [B, 2] rows and columns of patches of each picture, or NULL */
    const int64_t *pixel_attention_mask; /* [B, N] or NULL */
    const int64_t *patches_before;       /* [B + 1] of all items before each; what a run adds */
    const int64_t *is_longer;            /* [B] or NULL: items whose crops are fused into the whole */
    /* what stands for tokens: [B, feature_rows, D], or where they are flat [feature_rows, D]; or NULL. D: of
     * the text's rows, then of what is added to these rows later */
    const float *features;
    int64_t feature_rows;
    const int64_t *features_before; /* [B + 1] flat ones of all items before each; what a run adds */
    const int64_t *input_ids;       /* [B, L] or NULL */
    const int64_t *attention_mask;  /* [B, past + L] or NULL */
    const int64_t *position_ids;    /* [B, L] or [B, L, axes], or NULL: past, past + 1, ... */
    const int64_t *token_type_ids;  /* [B, L] or NULL */
    bvl_cache *cache;               /* of B items, or NULL: the tokens before these */
    int64_t past;                   /* cache->length, or 0 */
    /* [B]: what cross-attention of each item sees, and the longest of them; NULL: it is left out */
    const bvl_context *const *contexts;
    int64_t context_rows;
} bvl_inputs;

/* Of the tokens of this call, after those of the cache; NULL where all count. */
BVL_INLINE const int64_t *bvl_item_mask(const bvl_inputs *in, int64_t item) {
    return in->attention_mask ? in->attention_mask + item * (in->past + in->L) + in->past : NULL;
}

/* Declares a text's mask, and its types where there are some; `past`: after those of a cache. */
void bvl_declare_tokens(bvl_declared *declared, bool past, int64_t types);

/* Checks that the shapes of what was given are those declared and agree with each other, and takes them into
 * `in`, whose cache and past are set; B and L that nothing says stay -1. */
bvl_status bvl_inputs_take(bvl_inputs *in, const bvl_declared *declared, const bvl_argument *arguments,
                           bvl_error *err);

struct bvl_program;
/* Checks all of a call before anything is computed: what is missing, ids, contexts, cache, placeholders. */
bvl_status bvl_inputs_check(const struct bvl_program *program, const bvl_inputs *in, bvl_error *err);

#endif
