/* block.c: the transformer block, and attention pooling, which is one whose only query is learned.
 *
 *   pre-norm (CLIP, SigLIP)                  post-norm (BERT)
 *   x = x + out(attention(norm1(x)))         x = norm1(x + out(attention(x)))
 *   x = x + cross(norm(x))                   x = norm(x + cross(x))           where it has that part
 *   x = x + fc2(act(fc1(norm2(x))))          x = norm2(x + fc2(act(fc1(x))))
 *
 * norm: layer_norm, or rms_norm. gated: act(g) * u in place of act(fc1(x)), where fc1's rows are g, then u.
 *
 * attention: softmax(scale Q K^T + mask) V per head; Q, K, V come from one product. Several heads of queries
 * may share one of keys and values; queries and keys may be turned by their positions (rotary.h), or a bias
 * by distance be added to the scores. A causal block may find the keys and values of earlier tokens in the
 * call's cache, and appends its own.
 *
 * Where the first rows of an item are query tokens, they and the text attend to each other (causal: the
 * queries to themselves, the text to the queries and to what came before); then the queries alone attend to
 * the context, and each side has its own fc1, fc2 and norm.
 *
 * cross: the same with the keys and values of the item's context (state.h), which the operation "context"
 * made in another program.
 * attention_pool (SigLIP's MAP head): y = out(attention(probe Wq, x Wk, x Wv)); y + fc2(act(fc1(norm(y)))).
 * The probe's query does not depend on the input: it is computed when the model is built, and all that
 * follows its one row stays in float32.
 *
 * In bfloat16 and int8, where bfloat16 is native, q, k, v and both products of attention are bfloat16. The
 * residual stream and the norms are float32 in every precision.
 */
#include <math.h>
#include <string.h>

#include "../arena.h"
#include "../ops/attention.h"
#include "../ops/linear.h"
#include "../ops/rotary.h"
#include "ops.h"

typedef struct {
    bvl_linear fc1, fc2;
    bvl_norm norm;
    int64_t intermediate;
    bool direct, gated; /* direct: fc1 writes fc2's operand itself */
} feed_forward;

typedef struct {
    bvl_linear qkv, out; /* attention_pool: qkv holds k and v */
    bvl_norm norm1;      /* attention_pool: none */
    feed_forward ffn;    /* intermediate 0: there is one for queries alone */
    feed_forward query_ffn;
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
    bool bf16;       /* q, k, v and attention are bfloat16 */
    bool direct_out; /* attention writes out's operand itself */
} block;

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
    P_GATED
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
    RELATIVE = QUERY_FFN + 6
};
enum { FC1_W, FC1_B, FC2_W, FC2_B, NORM_W, NORM_B }; /* within a feed-forward */

/* The product whose weight [N, K] is number `at` and whose bias, which may be absent, is the next; N -1: any.
 */
static bvl_status linear_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t N,
                               int64_t K, bvl_precision precision, bvl_linear *linear, bvl_error *err) {
    const bvl_array *weight = &b->weights[at], *bias = weight + 1;
    if (bvl_expect(r->op, b, at, 2, N, K, 0, 0, err) != BVL_OK ||
        (bias->data && bvl_expect(r->op, b, at + 1, 1, weight->shape[0], 0, 0, 0, err) != BVL_OK))
        return err->status;
    return bvl_linear_init(linear, &p->store, p->kernels, precision, weight, bias, b->threads, err);
}

static bvl_status norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t D,
                             bvl_norm *norm, bvl_error *err) {
    return bvl_norm_build(p, r, b, at, D, b->params[P_EPS], b->params[P_RMS] != 0, norm, err);
}

/* Whether an epilogue that writes bfloat16 rows writes the operand of `next`, with no padding to clear. */
static bool writes_operand(const bvl_program *p, const bvl_linear *next) {
    return p->precision == BVL_BFLOAT16 && p->kernels->bf16_rows &&
           2 * next->product->operand_words(next->K) == next->K;
}

/* The six parameters from `at` on; act and gated are the block's. */
static bvl_status feed_forward_build(bvl_program *p, bvl_record *r, const bvl_build *b, int at,
                                     bvl_precision precision, feed_forward *f, bvl_error *err) {
    const int64_t D = p->slots[r->src].cols;
    f->gated = b->params[P_GATED] != 0;
    if (linear_build(p, r, b, at + FC1_W, -1, D, precision, &f->fc1, err) != BVL_OK) return err->status;
    f->intermediate = f->gated ? f->fc1.N / 2 : f->fc1.N;
    if (f->gated && f->fc1.N % 2)
        return bvl_fail(err, BVL_INVALID, "%s: %s: %lld rows, expected as many of gates as of what they gate",
                        r->op->name, r->op->weights[at + FC1_W], (long long)f->fc1.N);
    if (linear_build(p, r, b, at + FC2_W, D, f->intermediate, precision, &f->fc2, err) != BVL_OK)
        return err->status;
    f->direct = !f->gated && precision == p->precision && writes_operand(p, &f->fc2);
    return norm_build(p, r, b, at + NORM_W, D, &f->norm, err);
}

/* q, k and v; an attention pool's are k and v alone, and its other products are float32. */
static bvl_status attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bool pool,
                                  bvl_error *err) {
    const int64_t D = p->slots[r->src].cols, heads = (int64_t)b->params[P_HEADS];
    const int64_t kv_heads = pool ? heads : (int64_t)b->params[P_KV_HEADS];
    if (bvl_expect(r->op, b, QKV_W, 2, -1, D, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, OUT_W, 2, D, -1, 0, 0, err) != BVL_OK)
        return err->status;
    const int64_t rows = b->weights[QKV_W].shape[0], inner = b->weights[OUT_W].shape[1];
    const double act = b->params[P_ACT], scale = b->params[P_SCALE];
    if (heads < 1 || kv_heads < 1 || heads % kv_heads || inner % heads)
        return bvl_fail(
            err, BVL_INVALID,
            "%s: out_weight of %lld columns, %lld heads, %lld of keys: expected a multiple of the "
            "heads, and these of the heads of keys",
            r->op->name, (long long)inner, (long long)heads, (long long)kv_heads);
    if (rows != (pool ? 0 : inner) + 2 * kv_heads * (inner / heads))
        return bvl_fail(err, BVL_INVALID, "%s: qkv_weight of %lld rows, expected %lld", r->op->name,
                        (long long)rows, (long long)((pool ? 0 : inner) + 2 * kv_heads * (inner / heads)));
    if (!(act >= 0 && act < BVL_ACT_COUNT) || !(scale >= 0))
        return bvl_fail(err, BVL_INVALID,
                        "%s: activation %g, attention_scale %g: expected 0 to %d, and 0 or more", r->op->name,
                        act, scale, BVL_ACT_COUNT - 1);
    block *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    *s = (block){.D = D, .heads = heads, .hd = inner / heads, .inner = inner, .layer = -1, .cached = -1};
    s->group = heads / kv_heads;
    s->kv = kv_heads * s->hd;
    s->scale = scale > 0 ? (float)scale : 1.0f / sqrtf((float)s->hd);
    s->act = (bvl_activation)act;
    const bvl_precision rest = pool ? BVL_FLOAT32 : p->precision;
    if (linear_build(p, r, b, QKV_W, rows, D, p->precision, &s->qkv, err) != BVL_OK) return err->status;
    return linear_build(p, r, b, OUT_W, D, inner, rest, &s->out, err);
}

/* The part that attends to a context. */
static bvl_status cross_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    block *s = r->state;
    if (!b->weights[CROSS_Q_W].data) return BVL_OK;
    if (s->group != 1)
        return bvl_fail(err, BVL_INVALID,
                        "%s: cross_q_weight: found where heads share keys, expected neither", r->op->name);
    if (linear_build(p, r, b, CROSS_Q_W, s->inner, s->D, p->precision, &s->cross_q, err) != BVL_OK ||
        linear_build(p, r, b, CROSS_OUT_W, s->D, s->inner, p->precision, &s->cross_out, err) != BVL_OK ||
        norm_build(p, r, b, CROSS_NORM_W, s->D, &s->cross_norm, err) != BVL_OK)
        return err->status;
    s->layer = p->takes.layers;
    return bvl_context_layer(&p->takes, s->heads, s->hd, s->bf16, r->op->name, err);
}

/* Words between rows of q k v, of attention's output, of the MLP's inner activations and of cached k v. */
static int64_t block_ld(int64_t cols, bool bf16) {
    return bvl_padded(bf16 ? (cols + 1) / 2 : cols);
}

static int64_t qkv_ld(const block *s) {
    return block_ld(s->inner + 2 * s->kv, s->bf16);
}

bool bvl_block_bf16(const bvl_program *p, int64_t hd, int64_t kv) {
    /* a product's operand may reach past the last head's query, but only into keys and values */
    return bvl_attention_bf16(p->kernels, p->precision, hd) &&
           2 * p->kernels->product[BVL_BFLOAT16].operand_words(hd) - hd <= 2 * kv;
}

/* How attention sees positions: a bias by distance, or queries and keys turned. */
static bvl_status positions_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    block *s = r->state;
    const bvl_array *relative = &b->weights[RELATIVE];
    const bvl_slot *slot = &p->slots[r->src];
    s->rotary = b->params[P_ROTARY] != 0;
    if (s->rotary && (!slot->text || slot->rows || !p->rotary || 2 * p->rotary_half > s->hd))
        return bvl_fail(
            err, BVL_INVALID,
            "%s: rotary: found %lld frequencies, expected 1 to %lld, and the rows of a text alone",
            r->op->name, (long long)p->rotary_half, (long long)s->hd / 2);
    if (!relative->data) return BVL_OK;
    if (bvl_expect(r->op, b, RELATIVE, 2, s->heads, -1, 0, 0, err) != BVL_OK) return err->status;
    if (relative->shape[1] % 2 == 0)
        return bvl_fail(err, BVL_INVALID, "%s: relative_bias: found %lld columns, expected an odd number",
                        r->op->name, (long long)relative->shape[1]);
    if (p->queries)
        return bvl_fail(err, BVL_INVALID, "%s: relative_bias: found beside %lld query tokens, expected none",
                        r->op->name, (long long)p->queries);
    s->reach = relative->shape[1] / 2;
    return bvl_copy_vector(&s->relative, &p->store, relative, err);
}

static bvl_status block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    const bool queries = b->weights[QUERY_FFN].data != NULL;
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "transformer_block: expected src == dst");
    if (queries != (p->queries != 0) || ((slot->text || queries) && slot->rows != p->queries))
        return bvl_fail(err, BVL_INVALID,
                        "transformer_block: slot %s of %lld rows, %lld query tokens, weights for %s",
                        slot->name, (long long)slot->rows, (long long)p->queries, queries ? "some" : "none");
    if (attention_build(p, r, b, false, err) != BVL_OK) return err->status;
    block *s = r->state;
    s->causal = b->params[P_CAUSAL] != 0;
    s->pre_norm = b->params[P_PRE_NORM] != 0;
    if (norm_build(p, r, b, NORM1_W, s->D, &s->norm1, err) != BVL_OK) return err->status;
    if ((b->weights[FFN].data || slot->text) &&
        feed_forward_build(p, r, b, FFN, p->precision, &s->ffn, err) != BVL_OK)
        return err->status;
    if (queries && feed_forward_build(p, r, b, QUERY_FFN, p->precision, &s->query_ffn, err) != BVL_OK)
        return err->status;
    if (!queries && !s->ffn.intermediate)
        return bvl_expect(r->op, b, FFN, 2, -1, s->D, 0, 0, err); /* says that it is missing */
    s->bf16 = bvl_block_bf16(p, s->hd, s->kv);
    s->direct_out = s->bf16 && writes_operand(p, &s->out);
    if (cross_build(p, r, b, err) != BVL_OK || positions_build(p, r, b, err) != BVL_OK) return err->status;
    if (s->causal && slot->text && slot->rows == 0) {
        s->cached = p->cached_layers;
        p->cached_words[p->cached_layers++] = block_ld(2 * s->kv, s->bf16);
    } else if (slot->text) {
        p->uncached = true;
    }
    return BVL_OK;
}

/* Words per token of the three parts of the scratch: normed rows or attention's output; q k v or the MLP's
 * inner rows; operand rows. */
static void block_parts(const block *s, int64_t *narrow, int64_t *wide, int64_t *operand) {
    *narrow = BVL_MAX(bvl_padded(BVL_MAX(s->D, s->inner)), bvl_norm_operand(&s->norm1, &s->qkv));
    *wide = qkv_ld(s);
    *operand = BVL_MAX(bvl_linear_operand(&s->out), s->pre_norm ? 0 : bvl_linear_operand(&s->qkv));
    for (int i = 0; i < 2; i++) {
        const feed_forward *f = i ? &s->query_ffn : &s->ffn;
        if (!f->intermediate) continue;
        *narrow = BVL_MAX(*narrow, bvl_norm_operand(&f->norm, &f->fc1));
        *wide = BVL_MAX(*wide, block_ld(f->fc1.N, f->direct));
        *operand = BVL_MAX(*operand, bvl_linear_operand(&f->fc2));
        if (!s->pre_norm) *operand = BVL_MAX(*operand, bvl_linear_operand(&f->fc1));
    }
    if (s->layer < 0) return;
    *narrow = BVL_MAX(*narrow, bvl_norm_operand(&s->cross_norm, &s->cross_q));
    *operand = BVL_MAX(*operand, bvl_linear_operand(&s->cross_out));
    if (!s->pre_norm) *operand = BVL_MAX(*operand, bvl_linear_operand(&s->cross_q));
}

static int64_t block_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    int64_t narrow, wide, operand;
    block_parts(r->state, &narrow, &wide, &operand);
    return count * bvl_slot_rows(&p->slots[r->src], in) * (narrow + wide + operand);
}

static int64_t block_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const block *s = r->state;
    const int64_t keys = BVL_MAX(in->past + bvl_slot_rows(&p->slots[r->src], in), in->context_rows);
    return BVL_MAX(bvl_attention_scratch(p->kernels, keys, s->hd), bvl_padded(s->D));
}

/* Turns queries and keys by their positions; nothing in a block that does not. */
static void turn_rows(const block *s, const bvl_run *run, float *qkv, int64_t ld, int64_t T) {
    const int64_t half = run->program->rotary_half;
    int64_t begin, end;
    if (!s->rotary) return;
    bvl_share(run->count * T, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        bvl_rotary_run(qkv + i * ld, s->bf16, s->heads + s->heads / s->group, s->hd,
                       run->rotary + i * 2 * half, half);
    bvl_barrier(run->team);
}

/* Appends k and v of the new tokens to the cache; nothing without one. */
static void append_to_cache(const block *s, const bvl_run *run, const float *qkv, int64_t ld, int64_t T) {
    const bvl_inputs *in = run->inputs;
    if (s->cached < 0 || !in->cache) return;
    const int64_t q = s->inner / (s->bf16 ? 2 : 1), kv = s->kv / (s->bf16 ? 2 : 1);
    const int64_t words = block_ld(2 * s->kv, s->bf16);
    int64_t begin, end;
    bvl_share(run->count * T, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy(bvl_cache_rows(in->cache, s->cached, run->first + i / T) + (in->past + i % T) * words,
               qkv + i * ld + q, (size_t)(2 * kv) * sizeof(float));
    bvl_barrier(run->team);
}

/* out[rows, inner] = attention over qkv[count * T, inner + 2 * kv]; a unit of work is an item's head. Rows
 * are all tokens, or the one that run->pool takes of each item. */
static void self_attention(const block *s, const bvl_run *run, int slot, float *out, int64_t ldo,
                           const float *qkv, int64_t ld, int64_t T) {
    const bvl_inputs *in = run->inputs;
    const bool cached = s->cached >= 0 && in->cache;
    const int64_t per = s->bf16 ? 2 : 1, to = s->direct_out ? 2 : 1; /* elements in a word */
    const int64_t past = cached ? in->past : 0, queries = bvl_slot_queries(&run->program->slots[slot], in);
    bvl_attention_shape shape = {.Tq = run->pool ? 1 : T,
                                 .Tk = past + T,
                                 .hd = s->hd,
                                 .ldq = ld,
                                 .ldkv = cached ? block_ld(2 * s->kv, s->bf16) : ld,
                                 .ldo = ldo,
                                 .scale = s->scale,
                                 .reach = s->reach,
                                 .causal = s->causal,
                                 .prefix = queries,
                                 .bf16 = s->bf16,
                                 .out_bf16 = s->direct_out};
    const bool text = run->program->slots[slot].text; /* attention_mask is about text alone */
    int64_t begin, end;
    bvl_share(run->count * s->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, head = u % s->heads;
        const int64_t row = run->pool ? run->pool->op->row(run->pool, run, item) : 0;
        const float *q = qkv + item * T * ld;
        const float *k =
            cached ? bvl_cache_rows(in->cache, s->cached, run->first + item) : q + s->inner / per;
        k += head / s->group * s->hd / per;
        shape.first = past + row;
        shape.relative = s->relative ? s->relative + head * (2 * s->reach + 1) : NULL;
        shape.bias = text && run->key_bias ? run->key_bias + item * shape.Tk : NULL;
        bvl_attention(run->kernels, out + item * shape.Tq * ldo + head * s->hd / to,
                      q + row * ld + head * s->hd / per, k, k + s->kv / per, &shape, run->local);
    }
}

/* Zeros behind each row of q, where the operand of the last head reaches past it: stale bits may be NaN. */
static void clear_tails(const block *s, const bvl_run *run, float *q, int64_t ldq, int64_t rows) {
    const int64_t reach = run->kernels->product[BVL_BFLOAT16].operand_words(s->hd) - s->hd / 2;
    int64_t begin, end;
    if (!s->bf16 || reach <= 0) return;
    bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memset(q + i * ldq + s->inner / 2, 0, (size_t)reach * sizeof(float));
}

/* out[rows, inner] = attention of q[rows, inner] over the contexts of `count` items from `first` of the call
 * on, Tq rows an item. */
static void cross_attention(const block *s, const bvl_run *run, int64_t first, int64_t count, float *out,
                            int64_t ldo, const float *q, int64_t ldq, int64_t Tq) {
    bvl_attention_shape shape = {.Tq = Tq,
                                 .hd = s->hd,
                                 .ldq = ldq,
                                 .ldo = ldo,
                                 .scale = s->scale,
                                 .bf16 = s->bf16,
                                 .out_bf16 = s->direct_out};
    const int64_t per = s->bf16 ? 2 : 1, to = s->direct_out ? 2 : 1;
    int64_t begin, end;
    bvl_share(count * s->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, head = u % s->heads;
        const bvl_context *c = run->inputs->contexts[first + item];
        const float *packed = c->memory + s->layer * c->words + head * (c->words / s->heads);
        shape.Tk = c->rows;
        bvl_attention_packed(run->kernels, out + item * Tq * ldo + head * s->hd / to,
                             q + item * Tq * ldq + head * s->hd / per, packed, &shape, run->local);
    }
    bvl_barrier(run->team);
}

/* Moves the row that run->pool takes to row 0 of its item. */
static void keep_pooled(const bvl_run *run, float *x, int64_t ldx, int64_t T, int64_t D) {
    int64_t begin, end;
    bvl_share(run->count, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = run->pool->op->row(run->pool, run, i);
        if (row > 0) memcpy(x + i * T * ldx, x + (i * T + row) * ldx, (size_t)D * sizeof(float));
    }
    bvl_barrier(run->team);
}

/* Where a sub-layer works: rows of x, and the scratch of the team (block_parts). */
typedef struct {
    float *x, *h, *wide, *z;
    int64_t ldx, rows;
} place;

/* The rows a sub-layer's first product reads, *ld apart: of norm(x), or in a post-norm block of x itself. */
static const float *begin_sublayer(const block *s, const bvl_run *run, const bvl_norm *norm,
                                   const bvl_linear *first, const place *at, int64_t *ld) {
    *ld = at->ldx;
    if (!s->pre_norm) return bvl_linear_load(first, at->z, at->x, ld, at->rows, run->team);
    bvl_norm_load(norm, run->kernels, first, at->h, at->x, at->ldx, at->rows, run->local, run->team);
    bvl_barrier(run->team);
    *ld = bvl_norm_operand(norm, first);
    return at->h;
}

/* x += last(y), then the norm of a post-norm block. `direct`: y was written as the operand. */
static void end_sublayer(const block *s, const bvl_run *run, const bvl_norm *norm, const bvl_linear *last,
                         const place *at, const float *y, int64_t ldy, bool direct) {
    const bvl_kernels *k = run->kernels;
    const float *a = direct ? y : bvl_linear_load(last, at->z, y, &ldy, at->rows, run->team);
    bvl_linear_run(last, k, at->x, at->ldx, a, ldy, at->rows,
                   (bvl_epilogue){.residual = at->x, .ldr = at->ldx}, run->team);
    bvl_barrier(run->team);
    if (s->pre_norm) return;
    bvl_norm_run(norm, k, at->x, at->ldx, at->x, at->ldx, at->rows, run->team);
    bvl_barrier(run->team);
}

/* The sub-layer over the contexts of `count` items from `first` of the call on, at their rows. */
static void cross_sublayer(const block *s, const bvl_run *run, int64_t first, int64_t count,
                           const place *at) {
    const int64_t ldq = qkv_ld(s), ldo = block_ld(s->inner, s->direct_out);
    int64_t ld;
    const float *a = begin_sublayer(s, run, &s->cross_norm, &s->cross_q, at, &ld);
    clear_tails(s, run, at->wide, ldq, at->rows);
    bvl_linear_run(&s->cross_q, run->kernels, at->wide, ldq, a, ld, at->rows, (bvl_epilogue){.bf16 = s->bf16},
                   run->team);
    bvl_barrier(run->team);
    cross_attention(s, run, first, count, at->h, ldo, at->wide, ldq, at->rows / count);
    end_sublayer(s, run, &s->cross_norm, &s->cross_out, at, at->h, ldo, s->direct_out);
}

/* wide[rows, intermediate] = act(the gates) * what they gate. */
static void open_gates(const block *s, const bvl_run *run, const feed_forward *f, const place *at,
                       int64_t ldm) {
    int64_t begin, end;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        run->kernels->gate(at->wide + i * ldm, at->wide + i * ldm + f->intermediate, s->act, f->intermediate);
    bvl_barrier(run->team);
}

static void feed_forward_sublayer(const block *s, const bvl_run *run, const feed_forward *f,
                                  const place *at) {
    const int64_t ldm = block_ld(f->fc1.N, f->direct);
    int64_t ld;
    const float *a = begin_sublayer(s, run, &f->norm, &f->fc1, at, &ld);
    bvl_linear_run(&f->fc1, run->kernels, at->wide, ldm, a, ld, at->rows,
                   (bvl_epilogue){.act = f->gated ? BVL_ACT_NONE : s->act, .bf16 = f->direct}, run->team);
    bvl_barrier(run->team);
    if (f->gated) open_gates(s, run, f, at, ldm);
    end_sublayer(s, run, &f->norm, &f->fc2, at, at->wide, ldm, f->direct);
}

/* What follows self-attention where queries and text part ways: item by item, for the rows of one side lie
 * apart. */
static void part_ways(const block *s, const bvl_run *run, const place *all, int64_t queries, int64_t T) {
    place at = *all;
    for (int64_t i = 0; i < run->count; i++) {
        at.x = all->x + i * T * at.ldx;
        at.rows = queries;
        if (s->layer >= 0) cross_sublayer(s, run, run->first + i, 1, &at);
        feed_forward_sublayer(s, run, &s->query_ffn, &at);
        at.x += queries * at.ldx;
        at.rows = T - queries;
        if (at.rows) feed_forward_sublayer(s, run, &s->ffn, &at);
    }
}

static void block_run(const bvl_record *r, const bvl_run *run) {
    const block *s = r->state;
    const bvl_slot *slot = &run->program->slots[r->src];
    const int64_t T = bvl_slot_rows(slot, run->inputs), tokens = run->count * T;
    const int64_t ldq = qkv_ld(s), ldo = block_ld(s->inner, s->direct_out);
    int64_t narrow, wide, operand, ld;
    block_parts(s, &narrow, &wide, &operand);
    place at = {.x = run->slots[r->src], .h = run->shared, .ldx = slot->ld, .rows = tokens};
    at.wide = at.h + tokens * narrow;
    at.z = at.wide + tokens * wide;

    const float *a = begin_sublayer(s, run, &s->norm1, &s->qkv, &at, &ld);
    bvl_linear_run(&s->qkv, run->kernels, at.wide, ldq, a, ld, tokens, (bvl_epilogue){.bf16 = s->bf16},
                   run->team);
    bvl_barrier(run->team);
    turn_rows(s, run, at.wide, ldq, T);
    append_to_cache(s, run, at.wide, ldq, T);
    self_attention(s, run, r->src, at.h, ldo, at.wide, ldq, T);
    bvl_barrier(run->team);
    if (run->pool) keep_pooled(run, at.x, at.ldx, T, s->D);
    at.rows = bvl_run_rows(run, r->src, &at.ldx); /* from here on, perhaps one row an item */
    end_sublayer(s, run, &s->norm1, &s->out, &at, at.h, ldo, s->direct_out);

    const bool queries = s->query_ffn.intermediate && run->inputs->contexts;
    if (queries) {
        part_ways(s, run, &at, run->program->queries, T);
        return;
    }
    if (s->layer >= 0 && run->inputs->contexts) cross_sublayer(s, run, run->first, run->count, &at);
    feed_forward_sublayer(s, run, &s->ffn, &at);
}

const bvl_op bvl_op_transformer_block = {
    .name = "transformer_block",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", "causal", "pre_norm",
               "num_key_value_heads", "attention_scale", "rms_norm", "rotary", "gated", NULL},
    .weights = {"qkv_weight",        "qkv_bias",
                "out_weight",        "out_bias",
                "norm1_weight",      "norm1_bias",
                "fc1_weight",        "fc1_bias",
                "fc2_weight",        "fc2_bias",
                "norm2_weight",      "norm2_bias",
                "cross_q_weight",    "cross_q_bias",
                "cross_out_weight",  "cross_out_bias",
                "cross_norm_weight", "cross_norm_bias",
                "query_fc1_weight",  "query_fc1_bias",
                "query_fc2_weight",  "query_fc2_bias",
                "query_norm_weight", "query_norm_bias",
                "relative_bias",     NULL},
    .build = block_build,
    .shared = block_shared,
    .local = block_local,
    .run = block_run,
    .prunes = true,
};

static bvl_status attention_pool_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (p->slots[r->dst].text || p->slots[r->dst].rows != 1 || p->slots[r->dst].cols != p->slots[r->src].cols)
        return bvl_fail(err, BVL_INVALID, "attention_pool: expected one row of %lld",
                        (long long)p->slots[r->src].cols);
    if (attention_build(p, r, b, true, err) != BVL_OK) return err->status;
    block *s = r->state;
    if (bvl_expect(r->op, b, QUERY, 1, s->inner, 0, 0, 0, err) != BVL_OK ||
        feed_forward_build(p, r, b, FFN, BVL_FLOAT32, &s->ffn, err) != BVL_OK)
        return err->status;
    return bvl_copy_vector(&s->query, &p->store, &b->weights[QUERY], err);
}

static int64_t attention_pool_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                     const bvl_inputs *in) {
    const block *s = r->state;
    const int64_t rows = count * bvl_slot_rows(&p->slots[r->src], in);
    return rows * (bvl_padded(2 * s->inner) + bvl_linear_operand(&s->qkv)) +
           count * (bvl_padded(BVL_MAX(s->D, s->inner)) + bvl_padded(s->ffn.intermediate));
}

static void attention_pool_run(const bvl_record *r, const bvl_run *run) {
    const block *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const bvl_slot *src = &run->program->slots[r->src];
    const int64_t T = bvl_slot_rows(src, run->inputs), n = run->count, ldy = run->program->slots[r->dst].ld;
    const int64_t ldkv = bvl_padded(2 * s->inner), ldh = bvl_padded(BVL_MAX(s->D, s->inner)),
                  ldm = bvl_padded(s->ffn.intermediate);
    float *kv = run->shared, *h = kv + n * T * ldkv, *wide = h + n * ldh, *z = wide + n * ldm;
    float *y = run->slots[r->dst];
    int64_t ld = src->ld;

    const float *a = bvl_linear_load(&s->qkv, z, run->slots[r->src], &ld, n * T, team);
    bvl_linear_run(&s->qkv, k, kv, ldkv, a, ld, n * T, (bvl_epilogue){0}, team);
    bvl_barrier(team);
    const bvl_attention_shape shape = {
        .Tq = 1, .Tk = T, .hd = s->hd, .ldq = s->inner, .ldkv = ldkv, .ldo = ldh, .scale = s->scale};
    int64_t begin, end;
    bvl_share(n * s->heads, team.tid, team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, at = u % s->heads * s->hd;
        const float *keys = kv + item * T * ldkv + at;
        bvl_attention(k, h + item * ldh + at, s->query + at, keys, keys + s->inner, &shape, run->local);
    }
    bvl_barrier(team);
    bvl_linear_run(&s->out, k, y, ldy, h, ldh, n, (bvl_epilogue){0}, team);
    bvl_barrier(team);
    bvl_norm_run(&s->ffn.norm, k, h, ldh, y, ldy, n, team);
    bvl_barrier(team);
    bvl_linear_run(&s->ffn.fc1, k, wide, ldm, h, ldh, n, (bvl_epilogue){.act = s->act}, team);
    bvl_barrier(team);
    bvl_linear_run(&s->ffn.fc2, k, y, ldy, wide, ldm, n, (bvl_epilogue){.residual = y, .ldr = ldy}, team);
    bvl_barrier(team);
}

const bvl_op bvl_op_attention_pool = {
    .name = "attention_pool",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "norm1_weight", "norm1_bias",
                "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "norm2_weight", "norm2_bias", "query",
                NULL},
    .build = attention_pool_build,
    .shared = attention_pool_shared,
    .local = block_local,
    .run = attention_pool_run,
};
