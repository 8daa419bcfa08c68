/* self_attention.c: x + out(attention(qkv(norm(x)))): softmax(scale Q K^T + mask) V per head; Q, K, V come
 * from one product. Several heads of queries may share one of keys and values.
 *
 * Queries and keys may have a norm of each head (Henry et al., 2020).
 *
 * Positions: queries and keys are turned by theirs (rotary.h), of one axis or of several; or a bias by
 * distance is added to the scores. Causal, the keys and values of earlier tokens may be in the call's cache,
 * to which the new ones are added.
 *
 * Windows (Swin; Liu et al., 2021): rows attend within groups of them alone, with a bias by pair; where a
 * window holds rows of several regions, scores between them are lowered.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/rotary.h"
#include "sublayers.h"

enum { P_HEADS = P_OWN, P_KV_HEADS, P_SCALE, P_CAUSAL, P_ROTARY, P_WINDOW, P_SLIDING };
enum { NORM_W = 4, RELATIVE = 6, WINDOW_ROWS, WINDOW_REGIONS, Q_NORM, K_NORM, V_NORM, POST_NORM };
enum { QKV_BOUNDS = POST_NORM + 2, OUT_BOUNDS = QKV_BOUNDS + 2 };

typedef struct {
    bvl_attending base;
    float *q_norm, *k_norm, *v_norm; /* [hd] gains of a norm of each head, by the root of the mean square; or
                                      * NULL */
    float eps;
    bool causal;
    int rotary;               /* which of the program's turns, or -1 */
    int64_t sliding;          /* how far a row sees, or 0: all the way */
    int64_t cached;           /* layer of the cache, or -1 */
    float *relative;          /* [heads, 2 * reach + 1], of windows [heads, window * window]; or NULL */
    int64_t reach, window;    /* window: rows that attend to each other, or 0: all */
    int32_t *order, *regions; /* windowed: [T] the rows window by window; [T] in that order, or NULL */
} self_attention;

/* Windows: which rows they are of, and their bias by pair. */
static bvl_status window_build(bvl_program *p, const bvl_record *r, const bvl_build *b, self_attention *s,
                               bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    const int64_t W = s->window = (int64_t)b->params[P_WINDOW];
    if (slot->kind != BVL_FIXED_ROWS || s->causal || s->sliding || s->rotary >= 0 || p->queries || W < 1 ||
        slot->rows % W)
        return bvl_fail(err, BVL_INVALID,
                        "%s: window: found %lld, expected a divisor of the %lld rows of a picture alone",
                        r->op->name, (long long)W, (long long)slot->rows);
    if (bvl_table_build(p, r, b, WINDOW_ROWS, slot->rows, slot->rows, true, &s->order, err) != BVL_OK)
        return err->status;
    p->windowed = true;
    bool apart = slot->rows > W || b->weights[WINDOW_REGIONS].data;
    for (int64_t i = 0; i < W && !apart; i++) apart = s->order[i] != i;
    if (apart) s->base.sublayer.window = W, s->base.sublayer.order = s->order;
    if (b->weights[RELATIVE].data &&
        (bvl_expect(r->op, b, RELATIVE, 2, s->base.heads.heads, W * W, 0, 0, err) != BVL_OK ||
         bvl_copy_vector(&s->relative, &p->store, &b->weights[RELATIVE], err) != BVL_OK))
        return err->status;
    if (!b->weights[WINDOW_REGIONS].data) return BVL_OK;
    if (!s->relative)
        return bvl_fail(err, BVL_INVALID, "%s: window_regions: expected a relative_bias", r->op->name);
    return bvl_table_build(p, r, b, WINDOW_REGIONS, slot->rows, slot->rows, false, &s->regions, err);
}

/* How attention sees positions: a bias by distance or pair, or queries and keys turned. */
static bvl_status positions_build(bvl_program *p, const bvl_record *r, const bvl_build *b, self_attention *s,
                                  bvl_error *err) {
    const bvl_array *relative = &b->weights[RELATIVE];
    const bvl_slot *slot = &p->slots[r->src];
    int64_t rotary;
    if (bvl_expect_whole(r->op, b, P_ROTARY, 0, BVL_MAX_TURNS, &rotary, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_SLIDING, 0, 1 << 24, &s->sliding, err) != BVL_OK)
        return err->status;
    s->rotary = (int)rotary - 1;
    const bvl_turns *turns = s->rotary < 0 ? NULL : &p->turns[s->rotary];
    const int64_t half = turns ? turns->half : 0;
    const bool turned = turns && turns->kind == slot->kind && (slot->kind == BVL_PATCH_ROWS || !slot->rows);
    if (s->rotary >= 0 && (!turned || !half || 2 * half > s->base.heads.hd))
        return bvl_fail(err, BVL_INVALID,
                        "%s: rotary: found %lld frequencies, expected 1 to %lld, and the rows of a text "
                        "alone or of patches",
                        r->op->name, (long long)half, (long long)s->base.heads.hd / 2);
    if (b->params[P_WINDOW] != 0) return window_build(p, r, b, s, err);
    if (b->weights[WINDOW_ROWS].data || b->weights[WINDOW_REGIONS].data)
        return bvl_fail(err, BVL_INVALID, "%s: window_rows, window_regions: given, and window is 0",
                        r->op->name);
    if (!relative->data) return BVL_OK;
    if (bvl_expect(r->op, b, RELATIVE, 2, s->base.heads.heads, -1, 0, 0, err) != BVL_OK) return err->status;
    if (relative->shape[1] % 2 == 0)
        return bvl_fail(err, BVL_INVALID, "%s: relative_bias: found %lld columns, expected an odd number",
                        r->op->name, (long long)relative->shape[1]);
    if (p->queries)
        return bvl_fail(err, BVL_INVALID, "%s: relative_bias: found beside %lld query tokens, expected none",
                        r->op->name, (long long)p->queries);
    s->reach = relative->shape[1] / 2;
    return bvl_copy_vector(&s->relative, &p->store, relative, err);
}

static bvl_status head_norms_build(bvl_program *p, const bvl_record *r, const bvl_build *b, self_attention *s,
                                   bvl_error *err) {
    if (!b->weights[Q_NORM].data && !b->weights[K_NORM].data && !b->weights[V_NORM].data) return BVL_OK;
    s->eps = (float)b->params[P_EPS];
    if (bvl_expect(r->op, b, Q_NORM, 1, s->base.heads.hd, 0, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, K_NORM, 1, s->base.heads.hd, 0, 0, 0, err) != BVL_OK ||
        bvl_copy_vector(&s->q_norm, &p->store, &b->weights[Q_NORM], err) != BVL_OK ||
        bvl_copy_vector(&s->k_norm, &p->store, &b->weights[K_NORM], err) != BVL_OK)
        return err->status;
    if (!b->weights[V_NORM].data) return BVL_OK;
    if (bvl_expect(r->op, b, V_NORM, 1, s->base.heads.hd, 0, 0, 0, err) != BVL_OK) return err->status;
    return bvl_copy_vector(&s->v_norm, &p->store, &b->weights[V_NORM], err);
}

static bvl_status bounds_build(bvl_program *p, const bvl_record *r, const bvl_build *b, self_attention *s,
                               bvl_error *err) {
    bvl_heads *h = &s->base.heads;
    if (bvl_bounds_build(p, r, b, QKV_BOUNDS, s->base.norm.first, &h->in, err) != BVL_OK ||
        bvl_bounds_build(p, r, b, OUT_BOUNDS, true, &h->out, err) != BVL_OK)
        return err->status;
    if (h->out.reads) h->direct_out = false;
    return BVL_OK;
}

static bvl_status self_attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    int64_t heads, kv_heads;
    if (bvl_sublayer_expect(p, r, true, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_HEADS, 1, 1 << 16, &heads, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_KV_HEADS, 1, 1 << 16, &kv_heads, err) != BVL_OK)
        return err->status;
    self_attention *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    const bvl_heads *h = &s->base.heads;
    s->cached = -1;
    s->causal = b->params[P_CAUSAL] != 0;
    const bool apart = bvl_bounds_apart(b, QKV_BOUNDS, 3);
    if (bvl_heads_build(p, r, b, heads, kv_heads, true, apart, b->params[P_SCALE], &s->base.heads, err) !=
            BVL_OK ||
        bvl_sublayer_norm_build(p, r, b, NORM_W, &s->base.norm, err) != BVL_OK ||
        bvl_post_norm_build(p, r, b, POST_NORM, &s->base.norm, err) != BVL_OK ||
        positions_build(p, r, b, s, err) != BVL_OK || head_norms_build(p, r, b, s, err) != BVL_OK ||
        bounds_build(p, r, b, s, err) != BVL_OK)
        return err->status;
    bvl_attending_words(p, &s->base);
    if (s->causal && slot->kind == BVL_TEXT_ROWS && slot->rows == 0) {
        s->cached = p->cached_layers;
        p->cached_words[p->cached_layers++] = bvl_words_between(2 * h->kv, h->bf16);
    } else if (slot->kind == BVL_TEXT_ROWS) {
        p->uncached = true;
    }
    return BVL_OK;
}

static int64_t self_attention_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const self_attention *s = r->state;
    const int64_t hd = s->base.heads.hd, W = s->base.sublayer.window,
                  norm = bvl_norm_local(&s->base.norm.norm);
    if (W)
        return bvl_windows_local(p, r) +
               BVL_MAX(bvl_attention_scratch(p->kernels, W, hd) + (s->regions ? W * W : 0), norm);
    const int64_t keys = in->past + bvl_slot_rows(&p->slots[r->src], in);
    return BVL_MAX(BVL_MAX(bvl_attention_scratch(p->kernels, keys, hd), norm), s->q_norm ? hd : 0);
}

/* Norms `heads` heads of a row, in float32 whatever they are. */
static void norm_heads(const self_attention *s, const bvl_run *run, float *row, const float *gain,
                       int64_t heads) {
    const int64_t hd = s->base.heads.hd;
    for (int64_t i = 0; i < heads; i++) {
        if (!s->base.heads.bf16) {
            run->kernels->norm(row + i * hd, hd, row + i * hd, hd, gain, NULL, s->eps, 1, hd, false);
            continue;
        }
        uint16_t *half = (uint16_t *)(void *)row + i * hd;
        bvl_widen(run->local, half, hd);
        run->kernels->norm(run->local, hd, run->local, hd, gain, NULL, s->eps, 1, hd, false);
        for (int64_t d = 0; d < hd; d++) half[d] = bvl_to_bf16(run->local[d]);
    }
}

/* Norms the heads of queries, of keys and of values, each by itself; nothing where there is no such norm. */
static void norm_rows(const self_attention *s, const bvl_run *run, const bvl_place *at) {
    const bvl_heads *h = &s->base.heads;
    const int64_t ld = s->base.sublayer.ldq, per = h->bf16 ? 2 : 1, kv_heads = h->heads / h->group;
    int64_t begin, end;
    if (!s->q_norm) return;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *q = at->qkv + i * ld, *k = q + h->inner / per;
        norm_heads(s, run, q, s->q_norm, h->heads);
        norm_heads(s, run, k, s->k_norm, kv_heads);
        if (s->v_norm) norm_heads(s, run, k + h->kv / per, s->v_norm, kv_heads);
    }
    bvl_barrier(run->team);
}

/* Turns queries and keys by their positions; nothing in a block that does not. */
static void turn_rows(const self_attention *s, const bvl_run *run, const bvl_place *at) {
    const bvl_heads *h = &s->base.heads;
    const int64_t ld = s->base.sublayer.ldq;
    int64_t begin, end;
    if (s->rotary < 0) return;
    const int64_t half = run->program->turns[s->rotary].half;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        bvl_rotary_run(at->qkv + i * ld, h->bf16, h->heads + h->heads / h->group, h->hd,
                       run->turns[s->rotary] + i * 2 * half, half);
    bvl_barrier(run->team);
}

/* Appends k and v of the new tokens to the cache; nothing without one. */
static void append_to_cache(const self_attention *s, const bvl_run *run, const float *qkv, int64_t ld,
                            int64_t T) {
    const bvl_inputs *in = run->inputs;
    const bvl_heads *h = &s->base.heads;
    if (s->cached < 0 || !in->cache) return;
    const int64_t q = h->inner / (h->bf16 ? 2 : 1), kv = h->kv / (h->bf16 ? 2 : 1);
    const int64_t words = bvl_words_between(2 * h->kv, h->bf16);
    int64_t begin, end;
    bvl_share(run->count * T, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy(bvl_cache_rows(in->cache, s->cached, run->first + i / T) + (in->past + i % T) * words,
               qkv + i * ld + q, (size_t)(2 * kv) * sizeof(float));
    bvl_barrier(run->team);
}

/* What scores between regions are lowered by: Swin's, which leaves exp(-100), not 0. */
#define APART 100.0f

/* apart[window, window] = what is added to the scores of a window's pairs; NULL where it is one region. */
static const float *part_regions(const self_attention *s, int64_t window, float *apart) {
    const int32_t *regions = s->regions + window * s->window;
    bool mixed = false;
    for (int64_t i = 1; i < s->window; i++) mixed |= regions[i] != regions[0];
    for (int64_t i = 0; i < s->window && mixed; i++)
        for (int64_t j = 0; j < s->window; j++)
            apart[i * s->window + j] = regions[i] == regions[j] ? 0.0f : -APART;
    return mixed ? apart : NULL;
}

/* out[rows, inner] = attention over qkv[rows of all items, inner + 2 * kv]; a unit of work is an item's head.
 * Its rows are all tokens, or the one that run->pool takes of each item. */
static void attend_heads(const self_attention *s, const bvl_run *run, int slot, const bvl_place *at,
                         int64_t first, int64_t count, int64_t T) {
    const bvl_inputs *in = run->inputs;
    const bvl_heads *h = &s->base.heads;
    const int64_t ld = s->base.sublayer.ldq;
    const bool cached = s->cached >= 0 && in->cache;
    const int64_t per = h->bf16 ? 2 : 1, to = h->direct_out ? 2 : 1; /* elements in a word */
    const int64_t past = cached ? in->past : 0, queries = bvl_slot_queries(&run->program->slots[slot], in);
    bvl_attention_shape shape = {.hd = h->hd,
                                 .ldq = ld,
                                 .ldkv = cached ? bvl_words_between(2 * h->kv, h->bf16) : ld,
                                 .ldo = at->ldh,
                                 .scale = h->scale,
                                 .reach = s->reach,
                                 .sliding = s->sliding,
                                 .causal = s->causal,
                                 .prefix = queries,
                                 .bf16 = h->bf16,
                                 .out_bf16 = h->direct_out};
    const bvl_slot *held = &run->program->slots[slot];
    const bool text = held->kind == BVL_TEXT_ROWS; /* attention_mask is about text alone */
    const bool vary = bvl_rows_vary(held);
    int64_t begin, end;
    bvl_share(count * h->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / h->heads, head = u % h->heads;
        const int64_t row = run->pool ? run->pool->op->row(run->pool, run, item) : 0;
        const int64_t before = vary ? bvl_rows_before(run, held, item) : item * T;
        const int64_t rows = vary ? bvl_item_rows(run, held, item) : T;
        const float *q = at->qkv + before * ld;
        shape.Tq = run->pool ? 1 : rows;
        shape.Tk = past + rows;
        const float *k = cached ? bvl_cache_rows(in->cache, s->cached, first + item) : q + h->inner / per;
        k += head / h->group * h->hd / per;
        shape.first = past + row;
        if (s->window) {
            shape.pairs = s->relative ? s->relative + head * T * T : NULL;
            if (s->regions && (head == 0 || u == begin))
                shape.apart =
                    part_regions(s, first + item, run->local + bvl_attention_scratch(run->kernels, T, h->hd));
        } else {
            shape.relative = s->relative ? s->relative + head * (2 * s->reach + 1) : NULL;
        }
        shape.bias = text && run->key_bias ? run->key_bias + item * shape.Tk : NULL;
        bvl_attention(run->kernels, at->h + (run->pool ? item : before) * at->ldh + head * h->hd / to,
                      q + row * ld + head * h->hd / per, k, k + h->kv / per, &shape, run->local);
    }
}

static void attend(const void *state, const bvl_run *run, int slot, const bvl_place *at, int64_t first,
                   int64_t count, int64_t T) {
    const self_attention *s = state;
    norm_rows(s, run, at);
    turn_rows(s, run, at);
    append_to_cache(s, run, at->qkv, s->base.sublayer.ldq, T);
    attend_heads(s, run, slot, at, first, count, T);
    bvl_barrier(run->team);
}

const bvl_op bvl_op_self_attention = {
    .name = "self_attention",
    .params = {"layer_norm_eps", "rms_norm", "pre_norm", "num_attention_heads", "num_key_value_heads",
               "attention_scale", "causal", "rotary", "window", "sliding_window", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "norm_weight", "norm_bias",
                "relative_bias", "window_rows", "window_regions", "q_norm_weight", "k_norm_weight",
                "v_norm_weight", "post_norm_weight", "post_norm_bias", "qkv_reads", "qkv_gives", "out_reads",
                "out_gives", NULL},
    .build = self_attention_build,
    .local = self_attention_local,
    .steps = &(const bvl_steps){bvl_attending_project, attend, bvl_attending_add},
    .prunes = true,
};
