/* attention_pool.c: attention pooling, a block whose only query is learned (SigLIP's MAP head).
 *
 *   y = out(attention(probe Wq, x Wk, x Wv)); y + fc2(act(fc1(norm(y))))
 *
 * The probe's query does not depend on the input: it is computed when the model is built, and all that
 * follows its one row stays in float32.
 */
#include "../arena.h"
#include "sublayers.h"

enum { P_HEADS, P_ACT, P_LAYER_NORM_EPS };
enum { FC1 = 4, QUERY = FC1 + 6 };

typedef struct {
    bvl_heads heads; /* of keys and values */
    float *query;    /* [inner] */
    bvl_feed_forward ffn;
} attention_pool;

static bvl_status attention_pool_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (p->slots[r->dst].kind != BVL_FIXED_ROWS || p->slots[r->dst].rows != 1 ||
        p->slots[r->dst].cols != p->slots[r->src].cols)
        return bvl_fail(err, BVL_INVALID, "attention_pool: expected one row of %lld",
                        (long long)p->slots[r->src].cols);
    attention_pool *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    const bvl_feed_forward_settings settings = {.at = FC1,
                                                .precision = BVL_FLOAT32,
                                                .activation = b->params[P_ACT],
                                                .eps = b->params[P_LAYER_NORM_EPS]};
    int64_t heads;
    if (bvl_expect_whole(r->op, b, P_HEADS, 1, 1 << 16, &heads, err) != BVL_OK ||
        bvl_heads_build(p, r, b, heads, heads, false, false, 0, &s->heads, err) != BVL_OK ||
        bvl_expect(r->op, b, QUERY, 1, s->heads.inner, 0, 0, 0, err) != BVL_OK ||
        bvl_feed_forward_build(p, r, b, &settings, &s->ffn, err) != BVL_OK)
        return err->status;
    return bvl_copy_vector(&s->query, &p->store, &b->weights[QUERY], err);
}

static int64_t attention_pool_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                     const bvl_inputs *in) {
    const attention_pool *s = r->state;
    const bvl_heads *h = &s->heads;
    const int64_t rows = count * bvl_slot_rows(&p->slots[r->src], in);
    return rows * (bvl_padded(2 * h->inner) + bvl_linear_operand(&h->in)) +
           count * (bvl_padded(BVL_MAX(h->D, h->inner)) + bvl_padded(s->ffn.intermediate));
}

static int64_t attention_pool_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const attention_pool *s = r->state;
    return bvl_attention_scratch(p->kernels, bvl_slot_rows(&p->slots[r->src], in), s->heads.hd);
}

static void attention_pool_run(const bvl_record *r, const bvl_run *run) {
    const attention_pool *s = r->state;
    const bvl_heads *heads = &s->heads;
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const bvl_slot *src = &run->program->slots[r->src];
    const int64_t n = run->count, rows = bvl_rows_before(run, src, n), ldy = run->program->slots[r->dst].ld;
    const int64_t ldkv = bvl_padded(2 * heads->inner), ldh = bvl_padded(BVL_MAX(heads->D, heads->inner)),
                  ldm = bvl_padded(s->ffn.intermediate);
    float *kv = run->shared, *h = kv + rows * ldkv, *wide = h + n * ldh, *z = wide + n * ldm;
    float *y = run->slots[r->dst];
    int64_t ld = src->ld;

    const float *a = bvl_linear_load(&heads->in, z, run->slots[r->src], &ld, rows, team);
    bvl_linear_run(&heads->in, k, kv, ldkv, a, ld, rows, (bvl_epilogue){0}, team);
    bvl_barrier(team);
    bvl_attention_shape shape = {
        .Tq = 1, .hd = heads->hd, .ldq = heads->inner, .ldkv = ldkv, .ldo = ldh, .scale = heads->scale};
    int64_t begin, end;
    bvl_share(n * heads->heads, team.tid, team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / heads->heads, at = u % heads->heads * heads->hd;
        const float *keys = kv + bvl_rows_before(run, src, item) * ldkv + at;
        shape.Tk = bvl_item_rows(run, src, item);
        bvl_attention(k, h + item * ldh + at, s->query + at, keys, keys + heads->inner, &shape, run->local);
    }
    bvl_barrier(team);
    bvl_linear_run(&heads->out, k, y, ldy, h, ldh, n, (bvl_epilogue){0}, team);
    bvl_barrier(team);
    bvl_norm_run(&s->ffn.norm.norm, k, h, ldh, y, ldy, n, team);
    bvl_barrier(team);
    bvl_linear_run(&s->ffn.fc1[0], k, wide, ldm, h, ldh, n, (bvl_epilogue){.act = s->ffn.act}, team);
    bvl_barrier(team);
    bvl_linear_run(&s->ffn.fc2[0], k, y, ldy, wide, ldm, n, (bvl_epilogue){.residual = y, .ldr = ldy}, team);
    bvl_barrier(team);
}

const bvl_op bvl_op_attention_pool = {
    .name = "attention_pool",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "fc1_weight", "fc1_bias", "fc2_weight",
                "fc2_bias", "norm2_weight", "norm2_bias", "query", NULL},
    .build = attention_pool_build,
    .shared = attention_pool_shared,
    .local = attention_pool_local,
    .run = attention_pool_run,
};
