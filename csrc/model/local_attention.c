/* local_attention.c: x + post_norm(out(attention(qkv(norm(x))))), where a row sees itself and the `span - 1`
 * rows before it (the attention in chunks of Zhang et al., 2023, in which each row has as many keys):
 *
 *   s[d] = (q[t] * gain) . (k[t - d] + r[d])        p = softmax(cap tanh(s / cap))       y[t] = sum p[d] v[t
 * - d]
 *
 * r are keys of distances, of each head (Dai et al., 2019).
 */
#include "../arena.h"
#include "sublayers.h"

enum { P_HEADS = P_OWN, P_CAP };
enum { NORM_W = 4, POST_NORM = 6, GAIN = 8, RELATIVE, QKV_BOUNDS, OUT_BOUNDS = QKV_BOUNDS + 2 };

typedef struct {
    bvl_attending base;
    float *gain;     /* [hd] */
    float *relative; /* [heads, span, hd] */
    int64_t span;
    float cap;
} local_attention;

static bvl_status local_attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bool apart = bvl_bounds_apart(b, QKV_BOUNDS, 3);
    int64_t heads;
    if (bvl_sublayer_expect(p, r, true, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_HEADS, 1, 1 << 16, &heads, err) != BVL_OK)
        return err->status;
    if (p->windowed)
        return bvl_fail(err, BVL_INVALID, "%s: found beside attention within windows", r->op->name);
    if (!(b->params[P_CAP] > 0 && b->params[P_CAP] < 1e30))
        return bvl_fail(err, BVL_INVALID, "%s: cap: found %g, expected a number above 0", r->op->name,
                        b->params[P_CAP]);
    local_attention *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    bvl_heads *h = &s->base.heads;
    if (bvl_heads_build(p, r, b, heads, heads, true, apart, 1.0, h, err) != BVL_OK ||
        bvl_sublayer_norm_build(p, r, b, NORM_W, &s->base.norm, err) != BVL_OK ||
        bvl_post_norm_build(p, r, b, POST_NORM, &s->base.norm, err) != BVL_OK ||
        bvl_bounds_build(p, r, b, QKV_BOUNDS, s->base.norm.first, &h->in, err) != BVL_OK ||
        bvl_bounds_build(p, r, b, OUT_BOUNDS, true, &h->out, err) != BVL_OK ||
        bvl_expect(r->op, b, GAIN, 1, h->hd, 0, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, RELATIVE, 3, heads, -1, h->hd, 0, err) != BVL_OK ||
        bvl_copy_vector(&s->gain, &p->store, &b->weights[GAIN], err) != BVL_OK)
        return err->status;
    h->bf16 = h->direct_out = false; /* a few keys a row: nothing that a product in bfloat16 would gain */
    s->span = b->weights[RELATIVE].shape[1];
    s->cap = (float)b->params[P_CAP];
    bvl_attending_words(p, &s->base);
    return bvl_copy_vector(&s->relative, &p->store, &b->weights[RELATIVE], err);
}

static int64_t local_attention_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const local_attention *s = r->state;
    (void)p, (void)in;
    return BVL_MAX(bvl_norm_local(&s->base.norm.norm),
                   bvl_padded(s->base.heads.hd) + 2 * bvl_padded(s->span));
}

/* y[hd] of one head of row t of its item: q, k and v are its own, those of earlier rows ld apart before. */
static void attend_head(const local_attention *s, const bvl_run *run, float *y, const float *q, int64_t head,
                        int64_t t, int64_t ld) {
    const bvl_heads *h = &s->base.heads;
    const bvl_kernels *k = run->kernels;
    const int64_t hd = h->hd, n = BVL_MIN(s->span, t + 1);
    float *query = run->local, *scores = query + bvl_padded(hd), *more = scores + bvl_padded(s->span);
    for (int64_t d = 0; d < hd; d++) query[d] = q[d] * s->gain[d];
    k->dots(scores, query, q + h->inner, -ld, n, hd);
    k->dots(more, query, s->relative + head * s->span * hd, hd, n, hd);
    k->add(scores, more, n);
    k->scale(scores, 1.0f / s->cap, n);
    k->activate(scores, scores, NULL, BVL_ACT_TANH, n);
    k->softmax(scores, 0, scores, 0, 1, n, s->cap, NULL, 0, false);
    k->mix(y, scores, q + 2 * h->inner, -ld, n, hd);
}

static void attend(const void *state, const bvl_run *run, int slot, const bvl_place *at, int64_t first,
                   int64_t count, int64_t T) {
    const local_attention *s = state;
    const bvl_slot *held = &run->program->slots[slot];
    const int64_t ld = s->base.sublayer.ldq, heads = s->base.heads.heads, hd = s->base.heads.hd;
    int64_t begin, end;
    (void)first, (void)T;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = 0; i < count; i++) {
        const int64_t before = bvl_rows_before(run, held, i), after = bvl_rows_before(run, held, i + 1);
        for (int64_t row = BVL_MAX(begin, before); row < BVL_MIN(end, after); row++)
            for (int64_t head = 0; head < heads; head++)
                attend_head(s, run, at->h + row * at->ldh + head * hd, at->qkv + row * ld + head * hd, head,
                            row - before, ld);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_local_attention = {
    .name = "local_attention",
    .params = {"layer_norm_eps", "rms_norm", "pre_norm", "num_attention_heads", "cap", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "norm_weight", "norm_bias",
                "post_norm_weight", "post_norm_bias", "gain", "relative", "qkv_reads", "qkv_gives",
                "out_reads", "out_gives", NULL},
    .build = local_attention_build,
    .local = local_attention_local,
    .steps = &(const bvl_steps){bvl_attending_project, attend, bvl_attending_add},
};
