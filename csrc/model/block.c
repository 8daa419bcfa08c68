/* block.c: the transformer block.
 *
 *   x = x + out(attention(norm1(x)))         each part with the norm first (CLIP, SigLIP) or last (BERT):
 *   x = x + cross(norm(x))                   sublayers.h; cross: where it has that part, and the call gives
 *   x = x + fc2(act(fc1(norm2(x))))          contexts
 *
 * Where the first rows of an item are query tokens, they and the text attend to each other (causal: the
 * queries to themselves, the text to the queries and to what came before); then the queries alone attend to
 * the context, and each side has its own fc1, fc2 and norm.
 *
 * All but attention works row by row, so a worker with rows enough takes a strip of them through everything
 * between two attentions, and of windows, which are attended to within, a few through the whole block. A lone
 * window of all rows is worked on by the team.
 *
 * In bfloat16 and int8, where bfloat16 is native, q, k, v and both products of attention are bfloat16. The
 * residual stream and the norms are float32 in every precision.
 */
#include <string.h>

#include "../arena.h"
#include "sublayers.h"

typedef struct {
    bvl_self_attention self;
    bvl_cross_attention cross;
    bvl_feed_forward ffn, query_ffn; /* ffn.intermediate 0: there is one for queries alone */
    bvl_row_words words;
} bvl_block;

static bvl_status block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    const bool queries = b->weights[QUERY_FFN].data != NULL;
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "transformer_block: expected src == dst");
    if (queries != (p->queries != 0) || ((slot->text || queries) && slot->rows != p->queries))
        return bvl_fail(err, BVL_INVALID,
                        "transformer_block: slot %s of %lld rows, %lld query tokens, weights for %s",
                        slot->name, (long long)slot->rows, (long long)p->queries, queries ? "some" : "none");
    bvl_block *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    if (bvl_self_attention_build(p, r, b, &s->self, err) != BVL_OK ||
        ((b->weights[FFN].data || slot->text) &&
         bvl_feed_forward_build(p, r, b, FFN, p->precision, &s->ffn, err) != BVL_OK) ||
        (queries && bvl_feed_forward_build(p, r, b, QUERY_FFN, p->precision, &s->query_ffn, err) != BVL_OK))
        return err->status;
    if (!queries && !s->ffn.intermediate)
        return bvl_expect(r->op, b, FFN, 2, -1, s->self.heads.D, 0, 0, err); /* says that it is missing */
    if (bvl_cross_attention_build(p, r, b, &s->self.heads, &s->cross, err) != BVL_OK ||
        bvl_positions_build(p, r, b, &s->self, err) != BVL_OK)
        return err->status;
    bvl_self_attention_words(&s->self, &s->words);
    bvl_cross_attention_words(&s->cross, &s->words);
    bvl_feed_forward_words(&s->ffn, &s->words);
    bvl_feed_forward_words(&s->query_ffn, &s->words);
    return BVL_OK;
}

/* Windows a worker takes through a whole block at once, so that their rows stay in its cache. */
static int64_t windows_at_once(const bvl_block *s) {
    return BVL_MAX(1, 128 / s->self.window);
}

/* Words of scratch for so many rows. */
static int64_t rows_scratch(const bvl_block *s, int64_t rows) {
    return rows * (s->words.narrow + s->words.wide + s->words.operand);
}

static int64_t block_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    const bvl_block *s = r->state;
    return s->self.apart ? 0 : rows_scratch(s, count * bvl_slot_rows(&p->slots[r->src], in));
}

static int64_t block_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const bvl_block *s = r->state;
    const bvl_slot *slot = &p->slots[r->src];
    const int64_t norm = bvl_norm_local(&s->self.norm.norm), W = s->self.window, hd = s->self.heads.hd;
    if (s->self.apart) { /* the rows, all that is the team's elsewhere, and this worker's own */
        const int64_t rows = windows_at_once(s) * W;
        return rows * slot->ld + rows_scratch(s, rows) +
               BVL_MAX(bvl_attention_scratch(p->kernels, W, hd) + (s->self.regions ? W * W : 0), norm);
    }
    const int64_t keys = BVL_MAX(in->past + bvl_slot_rows(slot, in), in->context_rows);
    return BVL_MAX(bvl_attention_scratch(p->kernels, keys, hd), norm);
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

/* What follows self-attention where queries and text part ways: item by item, for the rows of one side lie
 * apart. */
static void part_ways(const bvl_block *s, const bvl_run *run, const bvl_place *all, int64_t queries,
                      int64_t T) {
    bvl_place at = *all;
    for (int64_t i = 0; i < run->count; i++) {
        at.x = all->x + i * T * at.ldx;
        at.rows = queries;
        if (s->cross.layer >= 0) bvl_cross_attention_run(&s->cross, run, run->first + i, 1, &at);
        bvl_feed_forward_run(&s->query_ffn, run, &at);
        at.x += queries * at.ldx;
        at.rows = T - queries;
        if (at.rows) bvl_feed_forward_run(&s->ffn, run, &at);
    }
}

/* Part of a block that works row by row; the team meets at its end. */
typedef void (*row_part)(const bvl_block *s, const bvl_run *run, const bvl_place *at);

/* A part by the team; or, where that gives each worker rows enough to read all weights for, by each worker
 * alone over its share, a strip at a time that stays in its cache. */
static void by_strips(const bvl_block *s, const bvl_run *run, const bvl_place *all, row_part part) {
    const int64_t strip = run->kernels->strip_rows;
    int64_t begin, end;
    if (all->rows < run->team.nt * strip * 2 / 3) {
        part(s, run, all);
        return;
    }
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    bvl_share(all->rows, run->team.tid, run->team.nt, &begin, &end);
    const int64_t pieces = (end - begin + strip - 1) / strip, step = run->kernels->strip_step;
    const int64_t each = bvl_round_up((end - begin + pieces - 1) / pieces, step);
    bvl_place at = *all;
    at.wide += begin * s->words.wide;
    at.z += begin * s->words.operand;
    for (int64_t first = begin; first < end; first += each) {
        at.x = all->x + first * all->ldx;
        at.h = all->h + first * all->ldh;
        at.qkv = all->qkv + first * bvl_qkv_ld(&s->self.heads);
        at.rows = BVL_MIN(each, end - first);
        part(s, &alone, &at);
    }
    bvl_barrier(run->team);
}

static void project_rows(const bvl_block *s, const bvl_run *run, const bvl_place *at) {
    bvl_self_attention_project(&s->self, run, at);
}

static void attended_rows(const bvl_block *s, const bvl_run *run, const bvl_place *at) {
    bvl_self_attention_add(&s->self, run, at);
}

static void feed_forward_rows(const bvl_block *s, const bvl_run *run, const bvl_place *at) {
    attended_rows(s, run, at);
    bvl_feed_forward_run(&s->ffn, run, at);
}

/* The block over run->count items of T rows at `at`, whose scratch is the team's. */
static void block_rows(const bvl_block *s, const bvl_run *run, int slot, bvl_place at, int64_t T) {
    at.ldh = s->words.narrow;
    at.wide = at.qkv = at.h + at.rows * s->words.narrow;
    at.z = at.wide + at.rows * s->words.wide;

    by_strips(s, run, &at, project_rows);
    bvl_self_attention_run(&s->self, run, slot, &at, T);
    if (run->pool) {
        keep_pooled(run, at.x, at.ldx, T, s->self.heads.D);
        at.rows = bvl_run_rows(run, slot, &at.ldx); /* from here on, one row an item */
    }
    const bool contexts = run->inputs->contexts, queries = s->query_ffn.intermediate && contexts;
    if (!queries && (s->cross.layer < 0 || !contexts)) {
        by_strips(s, run, &at, feed_forward_rows);
        return;
    }
    by_strips(s, run, &at, attended_rows);
    if (queries) {
        part_ways(s, run, &at, run->program->queries, T);
        return;
    }
    bvl_cross_attention_run(&s->cross, run, run->first, run->count, &at);
    bvl_feed_forward_run(&s->ffn, run, &at);
}

/* Each worker takes whole windows out of x, through the block alone, and puts them back. */
static void windows_run(const bvl_block *s, const bvl_run *run, int src) {
    const bvl_slot *slot = &run->program->slots[src];
    const int64_t W = s->self.window, most = windows_at_once(s), each = slot->rows / W;
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    bvl_place at = {.x = run->local, .ldx = slot->ld};
    int64_t begin, end;
    at.h = at.x + most * W * slot->ld;
    alone.local = at.h + rows_scratch(s, most * W);
    bvl_share(run->count * each, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t w = begin; w < end;) {
        alone.first = w % each; /* of its item's windows */
        alone.count = BVL_MIN(BVL_MIN(most, end - w), each - alone.first);
        float *item = run->slots[src] + w / each * slot->rows * slot->ld;
        const float *order = s->self.order + alone.first * W;
        at.rows = alone.count * W;
        for (int64_t i = 0; i < at.rows; i++)
            memcpy(at.x + i * slot->ld, item + (int64_t)order[i] * slot->ld,
                   (size_t)s->self.heads.D * sizeof(float));
        block_rows(s, &alone, src, at, W);
        for (int64_t i = 0; i < at.rows; i++)
            memcpy(item + (int64_t)order[i] * slot->ld, at.x + i * slot->ld,
                   (size_t)s->self.heads.D * sizeof(float));
        w += alone.count;
    }
    bvl_barrier(run->team);
}

static void block_run(const bvl_record *r, const bvl_run *run) {
    const bvl_block *s = r->state;
    const bvl_slot *slot = &run->program->slots[r->src];
    const int64_t T = bvl_slot_rows(slot, run->inputs);
    if (s->self.apart)
        windows_run(s, run, r->src);
    else
        block_rows(
            s, run, r->src,
            (bvl_place){.x = run->slots[r->src], .h = run->shared, .ldx = slot->ld, .rows = run->count * T},
            T);
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
    .build = block_build,
    .shared = block_shared,
    .local = block_local,
    .run = block_run,
    .prunes = true,
};
