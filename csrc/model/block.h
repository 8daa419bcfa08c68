/* block.h: what the files of the transformer block share: its state, and how it is built. */
#ifndef BVL_MODEL_BLOCK_H
#define BVL_MODEL_BLOCK_H

#include "../ops/attention.h"
#include "../ops/linear.h"
#include "ops.h"

enum { BVL_FFN_PARTS = 8 };

/* Its inner columns may be parted, `width` to a part, of which the last may have fewer: fc2 is then the sum
 * of the parts'.
 */
typedef struct {
    bvl_linear fc1[BVL_FFN_PARTS], fc2[BVL_FFN_PARTS];
    bvl_norm norm;
    int parts;
    int64_t intermediate, width;
    bool direct, gated; /* direct: fc1 writes fc2's operand itself */
} bvl_feed_forward;

typedef struct {
    bvl_linear qkv, out;  /* attention_pool: qkv holds k and v */
    bvl_norm norm1;       /* attention_pool: none */
    bvl_feed_forward ffn; /* intermediate 0: there is one for queries alone */
    bvl_feed_forward query_ffn;
    bvl_linear cross_q, cross_out; /* where layer >= 0 */
    bvl_norm cross_norm;
    int64_t layer;               /* of the contexts, or -1 */
    int64_t cached;              /* layer of the cache, or -1 */
    float *query;                /* attention_pool: [D] */
    int64_t D, heads, hd, inner; /* inner = heads * hd */
    int64_t group, kv;           /* heads of queries to one of keys; columns of keys, and of values */
    float scale, *relative;      /* relative: [heads, 2 * reach + 1] or NULL */
    int64_t reach;
    bvl_activation act;
    bool causal, pre_norm, rotary;
    int64_t window;         /* rows that attend to each other, or 0: all */
    bool apart;             /* there are several windows, each worked on alone */
    float *order, *regions; /* windowed: [T] the rows window by window; [T] in that order, or NULL */
    bool bf16;              /* q, k, v and attention are bfloat16 */
    bool direct_out;        /* attention writes out's operand itself */
} bvl_layer;

enum {
    P_HEADS,
    P_ACT,
    P_EPS,
    P_CAUSAL, /* from here on the block's alone: 0 in an attention_pool */
    P_PRE_NORM,
    P_KV_HEADS,
    P_SCALE,
    P_RMS,
    P_ROTARY,
    P_GATED,
    P_WINDOW
};
enum {
    QKV_W,
    QKV_B,
    OUT_W,
    OUT_B,
    NORM1_W,
    NORM1_B,
    FFN,             /* fc1, fc2 and norm2, six parameters */
    QUERY = FFN + 6, /* attention_pool's last; what follows is the block's */
    CROSS_Q_W = QUERY,
    CROSS_Q_B,
    CROSS_OUT_W,
    CROSS_OUT_B,
    CROSS_NORM_W,
    CROSS_NORM_B,
    QUERY_FFN,
    RELATIVE = QUERY_FFN + 6,
    WINDOW_ROWS,
    WINDOW_REGIONS
};
enum { FC1_W, FC1_B, FC2_W, FC2_B, NORM_W, NORM_B }; /* within a feed-forward */

/* Words between rows of q k v, of attention's output, of the MLP's inner activations and of cached k v. */
BVL_INLINE int64_t bvl_block_ld(int64_t cols, bool bf16) {
    return bvl_padded(bf16 ? (cols + 1) / 2 : cols);
}

BVL_INLINE int64_t bvl_qkv_ld(const bvl_layer *s) {
    return bvl_block_ld(s->inner + 2 * s->kv, s->bf16);
}

/* Words between rows of the inner activations of so many parts. */
BVL_INLINE int64_t bvl_inner_ld(const bvl_feed_forward *f, int parts) {
    return bvl_block_ld((f->gated ? 2 : 1) * BVL_MIN(parts * f->width, f->intermediate), f->direct);
}

/* q, k, v and the output product; an attention pool's are k and v alone, and its output is float32. */
bvl_status bvl_attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bool pool, bvl_error *err);
/* The six parameters from `at` on; activation and gates are the block's. Of a post-norm block there is one
 * part: x, which fc2 adds to, is what fc1 reads. */
bvl_status bvl_feed_forward_build(bvl_program *p, bvl_record *r, const bvl_build *b, int at,
                                  bvl_precision precision, bvl_feed_forward *f, bvl_error *err);
bvl_status bvl_block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err);

/* Words per token of the three parts of the scratch: normed rows or attention's output; q k v or the MLP's
 * inner rows; operand rows. */
void bvl_block_parts(const bvl_layer *s, int64_t *narrow, int64_t *wide, int64_t *operand);
/* Windows a worker takes through a whole block at once, so that their rows stay in its cache. */
int64_t bvl_windows_at_once(const bvl_layer *s);
int64_t bvl_block_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in);
int64_t bvl_block_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in);

#endif
