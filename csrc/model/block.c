/* block.c: the transformer block.
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
 *
 * Windows (Swin; Liu et al., 2021): rows attend within groups of them alone, with a bias by pair; where a
 * window holds rows of several regions, scores between them are lowered. All else works row by row, so a
 * worker takes a few windows through the whole block at once. A lone window of all rows is worked on by the
 * team.
 *
 * In bfloat16 and int8, where bfloat16 is native, q, k, v and both products of attention are bfloat16. The
 * residual stream and the norms are float32 in every precision.
 */
#include <string.h>

#include "../ops/rotary.h"
#include "block.h"

/* Turns queries and keys by their positions; nothing in a block that does not. */
static void turn_rows(const bvl_layer *s, const bvl_run *run, float *qkv, int64_t ld, int64_t T) {
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
static void append_to_cache(const bvl_layer *s, const bvl_run *run, const float *qkv, int64_t ld, int64_t T) {
    const bvl_inputs *in = run->inputs;
    if (s->cached < 0 || !in->cache) return;
    const int64_t q = s->inner / (s->bf16 ? 2 : 1), kv = s->kv / (s->bf16 ? 2 : 1);
    const int64_t words = bvl_block_ld(2 * s->kv, s->bf16);
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
static const float *part_regions(const bvl_layer *s, int64_t window, float *apart) {
    const float *regions = s->regions + window * s->window;
    bool mixed = false;
    for (int64_t i = 1; i < s->window; i++) mixed |= regions[i] != regions[0];
    for (int64_t i = 0; i < s->window && mixed; i++)
        for (int64_t j = 0; j < s->window; j++)
            apart[i * s->window + j] = regions[i] == regions[j] ? 0.0f : -APART;
    return mixed ? apart : NULL;
}

/* out[rows, inner] = attention over qkv[count * T, inner + 2 * kv]; a unit of work is an item's head. Rows
 * are all tokens, or the one that run->pool takes of each item. */
static void self_attention(const bvl_layer *s, const bvl_run *run, int slot, float *out, int64_t ldo,
                           const float *qkv, int64_t ld, int64_t T) {
    const bvl_inputs *in = run->inputs;
    const bool cached = s->cached >= 0 && in->cache;
    const int64_t per = s->bf16 ? 2 : 1, to = s->direct_out ? 2 : 1; /* elements in a word */
    const int64_t past = cached ? in->past : 0, queries = bvl_slot_queries(&run->program->slots[slot], in);
    bvl_attention_shape shape = {.Tq = run->pool ? 1 : T,
                                 .Tk = past + T,
                                 .hd = s->hd,
                                 .ldq = ld,
                                 .ldkv = cached ? bvl_block_ld(2 * s->kv, s->bf16) : ld,
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
        if (s->window) {
            shape.pairs = s->relative ? s->relative + head * T * T : NULL;
            if (s->regions && (head == 0 || u == begin))
                shape.apart = part_regions(s, run->first + item,
                                           run->local + bvl_attention_scratch(run->kernels, T, s->hd));
        } else {
            shape.relative = s->relative ? s->relative + head * (2 * s->reach + 1) : NULL;
        }
        shape.bias = text && run->key_bias ? run->key_bias + item * shape.Tk : NULL;
        bvl_attention(run->kernels, out + item * shape.Tq * ldo + head * s->hd / to,
                      q + row * ld + head * s->hd / per, k, k + s->kv / per, &shape, run->local);
    }
}

/* Zeros behind each row of q, where the operand of the last head reaches past it: stale bits may be NaN. */
static void clear_tails(const bvl_layer *s, const bvl_run *run, float *q, int64_t ldq, int64_t rows) {
    const int64_t reach = run->kernels->product[BVL_BFLOAT16].operand_words(s->hd) - s->hd / 2;
    int64_t begin, end;
    if (!s->bf16 || reach <= 0) return;
    bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memset(q + i * ldq + s->inner / 2, 0, (size_t)reach * sizeof(float));
}

/* out[rows, inner] = attention of q[rows, inner] over the contexts of `count` items from `first` of the call
 * on, Tq rows an item. */
static void cross_attention(const bvl_layer *s, const bvl_run *run, int64_t first, int64_t count, float *out,
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

/* Where a sub-layer works: rows of x, and the scratch of the team (bvl_block_parts). */
typedef struct {
    float *x, *h, *wide, *z;
    float *qkv; /* of these rows; in a strip it lies apart from wide, which each strip uses anew */
    int64_t ldx, rows;
} place;

/* The rows a sub-layer's first product reads, *ld apart: of norm(x), or in a post-norm block of x itself. */
static const float *begin_sublayer(const bvl_layer *s, const bvl_run *run, const bvl_norm *norm,
                                   const bvl_linear *first, const place *at, int64_t *ld) {
    *ld = at->ldx;
    if (!s->pre_norm) return bvl_linear_load(first, at->z, at->x, ld, at->rows, run->team);
    bvl_norm_load(norm, run->kernels, first, at->h, at->x, at->ldx, at->rows, run->local, run->team);
    bvl_barrier(run->team);
    *ld = bvl_norm_operand(norm, first);
    return at->h;
}

/* x += last(y); its operand rows are made at z, but where `direct` y is these. No barrier after it. */
static void add_product(const bvl_run *run, const bvl_linear *last, const place *at, float *z, const float *y,
                        int64_t ldy, bool direct) {
    const float *a = direct ? y : bvl_linear_load(last, z, y, &ldy, at->rows, run->team);
    bvl_linear_run(last, run->kernels, at->x, at->ldx, a, ldy, at->rows,
                   (bvl_epilogue){.residual = at->x, .ldr = at->ldx}, run->team);
}

/* The norm of a post-norm block. */
static void end_sublayer(const bvl_layer *s, const bvl_run *run, const bvl_norm *norm, const place *at) {
    bvl_barrier(run->team);
    if (s->pre_norm) return;
    bvl_norm_run(norm, run->kernels, at->x, at->ldx, at->x, at->ldx, at->rows, run->team);
    bvl_barrier(run->team);
}

/* The sub-layer over the contexts of `count` items from `first` of the call on, at their rows. */
static void cross_sublayer(const bvl_layer *s, const bvl_run *run, int64_t first, int64_t count,
                           const place *at) {
    const int64_t ldq = bvl_qkv_ld(s), ldo = bvl_block_ld(s->inner, s->direct_out);
    int64_t ld;
    const float *a = begin_sublayer(s, run, &s->cross_norm, &s->cross_q, at, &ld);
    clear_tails(s, run, at->wide, ldq, at->rows);
    bvl_linear_run(&s->cross_q, run->kernels, at->wide, ldq, a, ld, at->rows, (bvl_epilogue){.bf16 = s->bf16},
                   run->team);
    bvl_barrier(run->team);
    cross_attention(s, run, first, count, at->h, ldo, at->wide, ldq, at->rows / count);
    add_product(run, &s->cross_out, at, at->z, at->h, ldo, s->direct_out);
    end_sublayer(s, run, &s->cross_norm, at);
}

/* wide[rows, intermediate] = act(the gates) * what they gate. */
static void open_gates(const bvl_layer *s, const bvl_run *run, const bvl_feed_forward *f, const place *at,
                       int64_t ldm) {
    int64_t begin, end;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        run->kernels->gate(at->wide + i * ldm, at->wide + i * ldm + f->intermediate, s->act, f->intermediate);
    bvl_barrier(run->team);
}

/* A worker alone goes part by part, whose rows stay in its cache; a team meets once for all parts. */
static void feed_forward_sublayer(const bvl_layer *s, const bvl_run *run, const bvl_feed_forward *f,
                                  const place *at) {
    const int step = run->team.nt == 1 ? 1 : f->parts;
    const int64_t ldm = bvl_inner_ld(f, step), words = f->width / (f->direct ? 2 : 1);
    const int64_t operand = at->rows * bvl_linear_operand(&f->fc2[0]);
    const bvl_epilogue inner = {.act = f->gated ? BVL_ACT_NONE : s->act, .bf16 = f->direct};
    int64_t ld;
    const float *a = begin_sublayer(s, run, &f->norm, &f->fc1[0], at, &ld);
    for (int first = 0; first < f->parts; first += step) {
        for (int i = 0; i < step; i++)
            bvl_linear_run(&f->fc1[first + i], run->kernels, at->wide + i * words, ldm, a, ld, at->rows,
                           inner, run->team);
        bvl_barrier(run->team);
        if (f->gated) open_gates(s, run, f, at, ldm);
        for (int i = 0; i < step; i++)
            add_product(run, &f->fc2[first + i], at, at->z + i * operand, at->wide + i * words, ldm,
                        f->direct);
    }
    end_sublayer(s, run, &f->norm, at);
}

/* What follows self-attention where queries and text part ways: item by item, for the rows of one side lie
 * apart. */
static void part_ways(const bvl_layer *s, const bvl_run *run, const place *all, int64_t queries, int64_t T) {
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

/* Part of a block that works row by row; the team meets at its end. */
typedef void (*row_part)(const bvl_layer *s, const bvl_run *run, const place *at);

/* A part by the team; or, where that gives each worker rows enough to read all weights for, by each worker
 * alone over its share, a strip at a time that stays in its cache. */
static void by_strips(const bvl_layer *s, const bvl_run *run, const place *all, row_part part) {
    const int64_t strip = run->kernels->strip_rows;
    int64_t narrow, wide, operand, begin, end;
    if (all->rows < run->team.nt * strip * 2 / 3) {
        part(s, run, all);
        return;
    }
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    bvl_block_parts(s, &narrow, &wide, &operand);
    bvl_share(all->rows, run->team.tid, run->team.nt, &begin, &end);
    const int64_t pieces = (end - begin + strip - 1) / strip, step = run->kernels->strip_step;
    const int64_t each = bvl_round_up((end - begin + pieces - 1) / pieces, step);
    place at = *all;
    at.wide += begin * wide;
    at.z += begin * operand;
    for (int64_t first = begin; first < end; first += each) {
        at.x = all->x + first * all->ldx;
        at.h = all->h + first * narrow;
        at.qkv = all->qkv + first * bvl_qkv_ld(s);
        at.rows = BVL_MIN(each, end - first);
        part(s, &alone, &at);
    }
    bvl_barrier(run->team);
}

static void project_rows(const bvl_layer *s, const bvl_run *run, const place *at) {
    int64_t ld;
    const float *a = begin_sublayer(s, run, &s->norm1, &s->qkv, at, &ld);
    bvl_linear_run(&s->qkv, run->kernels, at->qkv, bvl_qkv_ld(s), a, ld, at->rows,
                   (bvl_epilogue){.bf16 = s->bf16}, run->team);
    bvl_barrier(run->team);
}

/* What follows attention, whose output is in h. */
static void attended_rows(const bvl_layer *s, const bvl_run *run, const place *at) {
    int64_t narrow, wide, operand;
    bvl_block_parts(s, &narrow, &wide, &operand);
    add_product(run, &s->out, at, at->z, at->h, narrow, s->direct_out);
    end_sublayer(s, run, &s->norm1, at);
}

static void feed_forward_rows(const bvl_layer *s, const bvl_run *run, const place *at) {
    attended_rows(s, run, at);
    feed_forward_sublayer(s, run, &s->ffn, at);
}

/* The block over run->count items of T rows at `at`, whose scratch is the team's. */
static void block_rows(const bvl_layer *s, const bvl_run *run, int slot, place at, int64_t T) {
    const int64_t ldq = bvl_qkv_ld(s), tokens = at.rows;
    int64_t narrow, wide, operand;
    bvl_block_parts(s, &narrow, &wide, &operand);
    at.wide = at.qkv = at.h + tokens * narrow;
    at.z = at.wide + tokens * wide;

    by_strips(s, run, &at, project_rows);
    turn_rows(s, run, at.qkv, ldq, T);
    append_to_cache(s, run, at.qkv, ldq, T);
    self_attention(s, run, slot, at.h, narrow, at.qkv, ldq, T);
    bvl_barrier(run->team);
    if (run->pool) {
        keep_pooled(run, at.x, at.ldx, T, s->D);
        at.rows = bvl_run_rows(run, slot, &at.ldx); /* from here on, one row an item */
    }
    const bool contexts = run->inputs->contexts, queries = s->query_ffn.intermediate && contexts;
    if (!queries && (s->layer < 0 || !contexts)) {
        by_strips(s, run, &at, feed_forward_rows);
        return;
    }
    by_strips(s, run, &at, attended_rows);
    if (queries) {
        part_ways(s, run, &at, run->program->queries, T);
        return;
    }
    cross_sublayer(s, run, run->first, run->count, &at);
    feed_forward_sublayer(s, run, &s->ffn, &at);
}

/* Each worker takes whole windows out of x, through the block alone, and puts them back. */
static void windows_run(const bvl_layer *s, const bvl_run *run, int src) {
    const bvl_slot *slot = &run->program->slots[src];
    const int64_t W = s->window, most = bvl_windows_at_once(s), each = slot->rows / W;
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    place at = {.x = run->local, .ldx = slot->ld};
    int64_t narrow, wide, operand, begin, end;
    bvl_block_parts(s, &narrow, &wide, &operand);
    at.h = at.x + most * W * slot->ld;
    alone.local = at.h + most * W * (narrow + wide + operand);
    bvl_share(run->count * each, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t w = begin; w < end;) {
        alone.first = w % each; /* of its item's windows */
        alone.count = BVL_MIN(BVL_MIN(most, end - w), each - alone.first);
        float *item = run->slots[src] + w / each * slot->rows * slot->ld;
        const float *order = s->order + alone.first * W;
        at.rows = alone.count * W;
        for (int64_t i = 0; i < at.rows; i++)
            memcpy(at.x + i * slot->ld, item + (int64_t)order[i] * slot->ld, (size_t)s->D * sizeof(float));
        block_rows(s, &alone, src, at, W);
        for (int64_t i = 0; i < at.rows; i++)
            memcpy(item + (int64_t)order[i] * slot->ld, at.x + i * slot->ld, (size_t)s->D * sizeof(float));
        w += alone.count;
    }
    bvl_barrier(run->team);
}

static void block_run(const bvl_record *r, const bvl_run *run) {
    const bvl_layer *s = r->state;
    const bvl_slot *slot = &run->program->slots[r->src];
    const int64_t T = bvl_slot_rows(slot, run->inputs);
    if (s->apart)
        windows_run(s, run, r->src);
    else
        block_rows(
            s, run, r->src,
            (place){.x = run->slots[r->src], .h = run->shared, .ldx = slot->ld, .rows = run->count * T}, T);
}

const bvl_op bvl_op_transformer_block = {
    .name = "transformer_block",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", "causal", "pre_norm",
               "num_key_value_heads", "attention_scale", "rms_norm", "rotary", "gated", "window", NULL},
    .weights = {"qkv_weight",        "qkv_bias",        "out_weight",        "out_bias",
                "norm1_weight",      "norm1_bias",      "fc1_weight",        "fc1_bias",
                "fc2_weight",        "fc2_bias",        "norm2_weight",      "norm2_bias",
                "cross_q_weight",    "cross_q_bias",    "cross_out_weight",  "cross_out_bias",
                "cross_norm_weight", "cross_norm_bias", "query_fc1_weight",  "query_fc1_bias",
                "query_fc2_weight",  "query_fc2_bias",  "query_norm_weight", "query_norm_bias",
                "relative_bias",     "window_rows",     "window_regions",    NULL},
    .build = bvl_block_build,
    .shared = bvl_block_shared,
    .local = bvl_block_local,
    .run = block_run,
    .prunes = true,
};
