/* operations.c: the list of all operations, each defined in its own file. */
#include "ops.h"

const bvl_op *const bvl_ops[] = {
    &bvl_op_embed_tokens,     &bvl_op_add_features,
    &bvl_op_join_features,    &bvl_op_query_tokens,
    &bvl_op_patch_embed,      &bvl_op_embed_patches,
    &bvl_op_pool_patches,     &bvl_op_embed_frames,
    &bvl_op_local_attention,  &bvl_op_light_conv,
    &bvl_op_fold_spectrogram, &bvl_op_fuse_crops,
    &bvl_op_self_attention,   &bvl_op_cross_attention,
    &bvl_op_feed_forward,     &bvl_op_attention_pool,
    &bvl_op_context,          &bvl_op_inverted_residual,
    &bvl_op_depthwise,        &bvl_op_squeeze_excite,
    &bvl_op_merge_rows,       &bvl_op_take_rows,
    &bvl_op_put_rows,         &bvl_op_norm,
    &bvl_op_linear,           &bvl_op_pool,
    &bvl_op_l2_normalize,     &bvl_op_softmax,
    &bvl_op_first_rows,       &bvl_op_copy,
    &bvl_op_gated_input,      NULL,
};
