/* sublayers.h: the parts of a transformer block, each of which adds to rows of x in place:
 *
 *   x = x + f(norm(x)), or with the norm after it (BERT) x = norm(x + f(x))
 *
 * They work in scratch of the team, a stretch of rows at a time, and none but attention looks across rows.
 */
#ifndef BVL_SUBLAYERS_H
#define BVL_SUBLAYERS_H

#include "../ops/attention.h"
#include "../ops/linear.h"
#include "ops.h"

/* Rows of x, and their scratch. */
typedef struct {
    float *x, *h, *wide, *z;
    float *qkv; /* of these rows; in a strip it lies apart from wide, which each strip uses anew */
    int64_t ldx, ldh, rows;
} bvl_place;

/* Words of scratch for each row: normed rows or attention's output (h); q k v or a feed-forward's inner rows
 * (wide); operand rows (z). */
typedef struct {
    int64_t narrow, wide, operand;
} bvl_row_words;

typedef struct {
    bvl_norm norm;
    bool first; /* of what is read; else of the sum */
} bvl_sublayer_norm;

/* The rows that the first product of a sub-layer reads, *ld apart. */
const float *bvl_sublayer_begin(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                                const bvl_place *at, int64_t *ld);
/* x += last(y); its operand rows are made at z, but where `direct` y is these. No barrier after it. */
void bvl_sublayer_add(const bvl_run *run, const bvl_linear *last, const bvl_place *at, float *z,
                      const float *y, int64_t ldy, bool direct);
/* A barrier, and the norm where it comes last. */
void bvl_sublayer_end(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_place *at);
/* What those need for each row. */
void bvl_sublayer_words(const bvl_sublayer_norm *norm, const bvl_linear *first, const bvl_linear *last,
                        bvl_row_words *words);

/* Heads of attention with their products. */
typedef struct {
    bvl_linear in, out;          /* q k v; of cross-attention q, of an attention pool k v */
    int64_t D, heads, hd, inner; /* inner = heads * hd */
    int64_t group, kv;           /* heads of queries to one of keys; columns of keys, and of values */
    float scale;
    bool bf16;       /* q, k, v and attention are bfloat16 */
    bool direct_out; /* attention writes out's operand itself */
} bvl_heads;

typedef struct {
    bvl_heads heads;
    bvl_sublayer_norm norm;
    bool causal, rotary;
    int64_t cached;  /* layer of the cache, or -1 */
    float *relative; /* [heads, 2 * reach + 1], of windows [heads, window * window]; or NULL */
    int64_t reach;
    int64_t window;         /* rows that attend to each other, or 0: all */
    bool apart;             /* there are several windows, each worked on alone */
    float *order, *regions; /* windowed: [T] the rows window by window; [T] in that order, or NULL */
} bvl_self_attention;

typedef struct {
    bvl_heads heads;
    bvl_sublayer_norm norm;
    int64_t layer; /* of the contexts, or -1: there is none */
} bvl_cross_attention;

enum { BVL_FFN_PARTS = 8 };

/* Its inner columns may be parted, `width` to a part, of which the last may have fewer: fc2 is then the sum
 * of the parts'. */
typedef struct {
    bvl_linear fc1[BVL_FFN_PARTS], fc2[BVL_FFN_PARTS];
    bvl_sublayer_norm norm;
    bvl_activation act;
    int parts;
    int64_t intermediate, width; /* intermediate 0: there is none */
    bool direct, gated;          /* direct: fc1 writes fc2's operand itself */
} bvl_feed_forward;

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

/* Words between rows of q k v, of attention's output, of inner activations and of cached k v. */
BVL_INLINE int64_t bvl_words_between(int64_t cols, bool bf16) {
    return bvl_padded(bf16 ? (cols + 1) / 2 : cols);
}

BVL_INLINE int64_t bvl_qkv_ld(const bvl_heads *h) {
    return bvl_words_between(h->inner + 2 * h->kv, h->bf16);
}

/* Weight number `at`, which is [N, K], and the next, which may be absent, its bias; N -1: any. */
bvl_status bvl_affine_expect(const bvl_record *r, const bvl_build *b, int at, int64_t N, int64_t K,
                             bvl_error *err);
bvl_status bvl_affine_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t N,
                            int64_t K, bvl_precision precision, bvl_linear *linear, bvl_error *err);
bvl_status bvl_sublayer_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t D,
                                   bvl_sublayer_norm *norm, bvl_error *err);
/* Whether an epilogue that writes bfloat16 rows writes the operand of `next`, with no padding to clear. */
bool bvl_writes_operand(const bvl_program *p, const bvl_linear *next);
/* Zeros behind each row of q, where the operand of the last head reaches past it: stale bits may be NaN. */
void bvl_clear_tails(const bvl_heads *h, const bvl_run *run, float *q, int64_t ldq, int64_t rows);

/* The first four parameters; of an attention pool k and v alone, and what follows them is float32. */
bvl_status bvl_heads_build(bvl_program *p, const bvl_record *r, const bvl_build *b, bool pool, bvl_heads *h,
                           bvl_error *err);

/* self_attention.c. The norm comes after the heads in the store, and what it sees of positions at the end. */
bvl_status bvl_self_attention_build(bvl_program *p, const bvl_record *r, const bvl_build *b,
                                    bvl_self_attention *s, bvl_error *err);
bvl_status bvl_positions_build(bvl_program *p, const bvl_record *r, const bvl_build *b, bvl_self_attention *s,
                               bvl_error *err);
void bvl_self_attention_words(const bvl_self_attention *s, bvl_row_words *words);
/* Row by row qkv; then h, across the rows of each of run->count items, T of them, or of the one that
 * run->pool takes; then row by row x. */
void bvl_self_attention_project(const bvl_self_attention *s, const bvl_run *run, const bvl_place *at);
void bvl_self_attention_run(const bvl_self_attention *s, const bvl_run *run, int slot, const bvl_place *at,
                            int64_t T);
void bvl_self_attention_add(const bvl_self_attention *s, const bvl_run *run, const bvl_place *at);

/* cross_attention.c. Over the contexts of `count` items from `first` of the call on, at their rows. */
bvl_status bvl_cross_attention_build(bvl_program *p, const bvl_record *r, const bvl_build *b,
                                     const bvl_heads *like, bvl_cross_attention *s, bvl_error *err);
void bvl_cross_attention_words(const bvl_cross_attention *s, bvl_row_words *words);
void bvl_cross_attention_run(const bvl_cross_attention *s, const bvl_run *run, int64_t first, int64_t count,
                             const bvl_place *at);

/* feed_forward.c. The six parameters from `at` on. With the norm after it there is one part: x, which fc2
 * adds to, is what fc1 reads. */
bvl_status bvl_feed_forward_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                                  bvl_precision precision, bvl_feed_forward *f, bvl_error *err);
void bvl_feed_forward_words(const bvl_feed_forward *f, bvl_row_words *words);
void bvl_feed_forward_run(const bvl_feed_forward *f, const bvl_run *run, const bvl_place *at);

#endif
