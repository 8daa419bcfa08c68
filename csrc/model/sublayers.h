/* sublayers.h: the sub-layers of a transformer, each of which adds to rows of x in place:
 *
 *   x = x + f(norm(x)), or with the norm after it (BERT) x = norm(x + f(x)), or with one more (Gemma) x = x +
 *   post_norm(f(norm(x)))
 *
 * Each works row by row, but for attention in between. What is known of one by the program that runs it
 * (which rows, where it looks across rows) is in `bvl_sublayer`, with which the state of each begins.
 */
#ifndef BVL_SUBLAYERS_H
#define BVL_SUBLAYERS_H

#include "../ops/attention.h"
#include "../ops/linear.h"
#include "ops.h"

/* Which rows of an item, where query tokens come first; the names are exported to Python as _C.ROWS. */
typedef enum { BVL_ALL_ROWS = 0, BVL_QUERY_ROWS, BVL_TOKEN_ROWS } bvl_part;
extern const char *const bvl_part_names[]; /* NULL at the end */

typedef struct {
    bvl_part part;
    bool optional;        /* left out of a call without contexts */
    int64_t ldq;          /* words between rows of what `project` writes */
    int64_t window;       /* rows that attend to each other where there are several such windows, or 0 */
    const int32_t *order; /* [T] the rows, window by window */
    bool inner;           /* `add` fills `wide`, where what is projected would lie */
} bvl_sublayer;

typedef struct {
    bvl_norm norm;
    bool first;    /* of what is read; else of the sum */
    bvl_norm post; /* of what is added, where `posts` */
    bool posts;
} bvl_sublayer_norm;

/* The rows that the first product of a sub-layer reads, *ld apart. */
const float *bvl_sublayer_begin(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                                const bvl_place *at, int64_t *ld);
/* y = first(those rows), rows ldy apart, and a barrier; products after `first` write the columns after its
 * own. */
void bvl_sublayer_project(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                          const bvl_place *at, float *y, int64_t ldy, bvl_epilogue epilogue);
/* x += last(y); its operand rows are made at z, but where `direct` y is these. No barrier after it. What is
 * normed or clipped before it is added needs rows for it, `free`, which nobody reads meanwhile. */
void bvl_sublayer_add(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *last,
                      const bvl_place *at, float *z, float *y, int64_t ldy, bool direct, float *free);
/* A barrier, and the norm where it comes last. */
void bvl_sublayer_end(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_place *at);
/* Notes what the program needs for each row of a sub-layer with these products. */
void bvl_sublayer_words(bvl_program *p, const bvl_sublayer_norm *norm, const bvl_linear *first,
                        const bvl_linear *last);

/* Heads of attention with their products. */
typedef struct {
    bvl_linear in, out;          /* q k v; of cross-attention q, of an attention pool k v */
    bvl_linear rest[2];          /* k and v, where their inputs are clipped apart */
    int64_t D, heads, hd, inner; /* inner = heads * hd */
    int64_t group, kv;           /* heads of queries to one of keys; columns of keys, and of values */
    float scale;
    bool bf16;       /* q, k, v and attention are bfloat16 */
    bool direct_out; /* attention writes out's operand itself */
} bvl_heads;

/* What the state of a sub-layer that attends begins with. */
typedef struct {
    bvl_sublayer sublayer;
    bvl_heads heads;
    bvl_sublayer_norm norm;
} bvl_attending;

enum { BVL_FFN_PARTS = 8 };

/* Its inner columns may be parted, `width` to a part, of which the last may have fewer: fc2 is then the sum
 * of the parts'. */
typedef struct {
    bvl_linear fc1[BVL_FFN_PARTS], fc2[BVL_FFN_PARTS];
    bvl_sublayer_norm norm;
    bvl_activation act;
    int parts;
    int64_t intermediate, width;
    bool direct, gated; /* direct: fc1 writes fc2's operand itself */
} bvl_feed_forward;

/* The first parameters of a sub-layer, and its last two weights, whose places its file says. */
enum { P_EPS, P_RMS, P_PRE_NORM, P_OWN };

/* Words between rows of q k v, of attention's output, of inner activations and of cached k v. */
BVL_INLINE int64_t bvl_words_between(int64_t cols, bool bf16) {
    return bvl_padded(bf16 ? (cols + 1) / 2 : cols);
}

/* Weight number `at`, which is [N, K], and the next, which may be absent, its bias; N -1: any. */
bvl_status bvl_affine_expect(const bvl_record *r, const bvl_build *b, int at, int64_t N, int64_t K,
                             bvl_error *err);
bvl_status bvl_affine_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t N,
                            int64_t K, bvl_precision precision, bvl_linear *linear, bvl_error *err);
/* Whether weight `at`, [2 * parts, K], bounds what each part of a product reads by itself. */
BVL_INLINE bool bvl_bounds_apart(const bvl_build *b, int at, int64_t parts) {
    return b->weights[at].data && b->weights[at].rank == 2 && b->weights[at].shape[0] == 2 * parts;
}
/* Weight `at`, part by part: rows[i] of it each, all but the first in `rest`. */
bvl_status bvl_apart_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                           const int64_t *rows, int parts, bvl_precision precision, bvl_linear *first,
                           bvl_linear *rest, bvl_error *err);
/* What a product and those after it read and give is clipped to: weights `at` [2, K], of each, and the next
 * [2, N], of all, if any; `own`: the rows it reads are nobody else's. */
bvl_status bvl_bounds_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, bool own,
                            bvl_linear *linear, bvl_error *err);
/* The norm of a sub-layer, whose gain is weight `at`. */
bvl_status bvl_sublayer_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                                   bvl_sublayer_norm *norm, bvl_error *err);
/* The norm of what it adds, whose gain is weight `at`, if any. */
bvl_status bvl_post_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                               bvl_sublayer_norm *norm, bvl_error *err);
/* Whether its rows are a slot's, and follow those of a sub-layer that attends, unless it does itself. */
bvl_status bvl_sublayer_expect(const bvl_program *p, const bvl_record *r, bool first, bvl_error *err);
/* Whether an epilogue that writes bfloat16 rows writes the operand of `next`, with no padding to clear. */
bool bvl_writes_operand(const bvl_program *p, const bvl_linear *next);

/* Weights 0 and 1 and, of the output product, 2 and 3, for `heads` heads of queries (where these are made
 * here) and `kv_heads` of keys and values (where these are); scale 0: the root of hd; `apart`: q, k and v are
 * products of their own. */
bvl_status bvl_heads_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int64_t heads,
                           int64_t kv_heads, bool queries, bool apart, double scale, bvl_heads *h,
                           bvl_error *err);

/* Notes what the program needs for each row of such a sub-layer. */
void bvl_attending_words(bvl_program *p, bvl_attending *s);
/* Two of its steps (bvl_steps); attention is its own. */
void bvl_attending_project(const void *state, const bvl_run *run, const bvl_place *at);
void bvl_attending_add(const void *state, const bvl_run *run, const bvl_place *at);

/* The six weights fc1, fc2 and norm from `at` on, of a feed-forward in a sub-layer or a pool. */
typedef struct {
    int at;
    bvl_precision precision;
    double activation, eps;
    bool gated, rms, pre_norm;
    bool clipped; /* what some product reads or gives */
    bool apart;   /* gates and what they gate are products of their own */
} bvl_feed_forward_settings;
bvl_status bvl_feed_forward_build(bvl_program *p, const bvl_record *r, const bvl_build *b,
                                  const bvl_feed_forward_settings *settings, bvl_feed_forward *f,
                                  bvl_error *err);

/* Sub-layers of one slot from record `first` on that run together: the first, and those after it up to the
 * next self-attention; `live` and `states` of the call end them too. */
int bvl_chain_length(const bvl_program *p, int first, const bool *live, float *const *states);
void bvl_chain_run(const bvl_record *records, int count, const bvl_run *run);
/* Scratch of the team for the chain that a record begins; over windows it is each worker's. */
int64_t bvl_chain_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in);
int64_t bvl_windows_local(const bvl_program *p, const bvl_record *r);

#endif
