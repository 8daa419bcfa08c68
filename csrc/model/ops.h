/* ops.h: the operations a program is made of, one object each; the list is in operations.c, and what
 * helps to build them in build.c. */
#ifndef BVL_MODEL_OPS_H
#define BVL_MODEL_OPS_H

#include "../ops/conv.h"
#include "../ops/rows.h"
#include "program.h"

extern const bvl_op bvl_op_embed_tokens, bvl_op_add_features, bvl_op_join_features,
    bvl_op_query_tokens;                                       /* stem.c */
extern const bvl_op bvl_op_patch_embed;                        /* patch.c */
extern const bvl_op bvl_op_embed_patches;                      /* embed_patches.c */
extern const bvl_op bvl_op_embed_frames;                       /* embed_frames.c */
extern const bvl_op bvl_op_local_attention, bvl_op_light_conv; /* of these names */
extern const bvl_op bvl_op_pool_patches;                       /* pool_patches.c */
extern const bvl_op bvl_op_fold_spectrogram;                   /* spectrogram.c */
extern const bvl_op bvl_op_fuse_crops;                         /* fuse.c */
extern const bvl_op bvl_op_take_rows, bvl_op_put_rows;         /* rows.c */
extern const bvl_op bvl_op_merge_rows;                         /* merge.c */
extern const bvl_op bvl_op_self_attention, bvl_op_cross_attention, bvl_op_feed_forward,
    bvl_op_gated_input;                                      /* of these names */
extern const bvl_op bvl_op_attention_pool;                   /* attention_pool.c */
extern const bvl_op bvl_op_context;                          /* context.c */
extern const bvl_op bvl_op_inverted_residual;                /* conv.c */
extern const bvl_op bvl_op_depthwise, bvl_op_squeeze_excite; /* depthwise.c */
extern const bvl_op bvl_op_norm, bvl_op_linear, bvl_op_pool, bvl_op_l2_normalize, bvl_op_softmax,
    bvl_op_first_rows, bvl_op_copy; /* head.c */

/* Whether attention over heads of hd columns, `kv` columns of keys in all, runs in bfloat16. */
bool bvl_heads_bf16(const bvl_program *program, int64_t hd, int64_t kv);

/* The norm over D columns whose gain is weight `at` and whose offset, which rms_norm has not, is the next. */
bvl_status bvl_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t D,
                          double eps, bool rms, bvl_norm *norm, bvl_error *err);

/* Weight `at` as integers: `count` whole numbers from 0 to below - 1, of which, if `once`, none comes twice.
 */
bvl_status bvl_table_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t count,
                           int64_t below, bool once, int32_t **table, bvl_error *err);

/* The picture and its windows as the first nine parameters say, the kernel as the weight [D, C, height,
 * width] does; ld: floats between two lines, 0: its width. */
bvl_status bvl_patches_build(const bvl_record *r, const bvl_build *b, const bvl_array *weight, int64_t ld,
                             bvl_patches *patches, bvl_error *err);

#endif
