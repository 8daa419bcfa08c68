/* block.c: the transformer block, and attention pooling, which is one whose only query is learned.
 *
 *   pre-norm (CLIP, SigLIP)                  post-norm (BERT)
 *   x = x + out(attention(norm1(x)))         x = norm1(x + out(attention(x)))
 *   x = x + fc2(act(fc1(norm2(x))))          x = norm2(x + fc2(act(fc1(x))))
 *
 * attention: softmax(Q K^T / sqrt(hd) + mask) V per head; Q, K, V come from one product.
 * attention_pool (SigLIP's MAP head): y = out(attention(probe Wq, x Wk, x Wv)); y + fc2(act(fc1(norm(y)))).
 * The probe's query does not depend on the input: it is computed when the model is built.
 */
#include <math.h>
#include <string.h>

#include "../arena.h"
#include "../ops/attention.h"
#include "../ops/linear.h"
#include "../ops/rows.h"
#include "ops.h"

typedef struct {
    bvl_linear qkv, out, fc1, fc2;             /* attention_pool: qkv holds k and v */
    bvl_norm norm1, norm2;                     /* attention_pool: norm2 alone */
    float *query;                              /* attention_pool: [D] */
    int64_t D, heads, hd, inner, intermediate; /* inner = heads * hd */
    bvl_activation act;
    bool causal, pre_norm;
} block;

enum { P_HEADS, P_ACT, P_EPS, P_CAUSAL, P_PRE_NORM };
enum { QKV_W, QKV_B, OUT_W, OUT_B, FC1_W, FC1_B, FC2_W, FC2_B, NORM1_W, NORM1_B, NORM2_W, NORM2_B, QUERY };

static void block_release(void *state) {
    block *s = state;
    bvl_linear_free(&s->qkv);
    bvl_linear_free(&s->out);
    bvl_linear_free(&s->fc1);
    bvl_linear_free(&s->fc2);
    bvl_norm_free(&s->norm1);
    bvl_norm_free(&s->norm2);
    bvl_free(s->query);
    bvl_free(s);
}

static bvl_status expect_bias(const bvl_record *r, const bvl_build *b, int weight, int64_t n,
                              bvl_error *err) {
    return b->weights[weight].data ? bvl_expect(r->op, b, weight, 1, n, 0, 0, 0, err) : BVL_OK;
}

/* `parts`: 3 for q, k, v; 2 for k, v. */
static bvl_status block_check(const bvl_program *p, const bvl_record *r, const bvl_build *b, int parts,
                              bvl_error *err) {
    const bvl_array *w = b->weights;
    const int64_t D = p->slots[r->src].cols, heads = (int64_t)b->params[P_HEADS];
    if (bvl_expect(r->op, b, QKV_W, 2, -1, D, 0, 0, err) != BVL_OK) return err->status;
    const int64_t inner = w[QKV_W].shape[0] / parts;
    if (heads < 1 || w[QKV_W].shape[0] % parts || inner % heads)
        return bvl_fail(err, BVL_INVALID, "%s: %lld rows of qkv_weight do not split over %lld heads",
                        r->op->name, (long long)w[QKV_W].shape[0], (long long)heads);
    if (bvl_expect(r->op, b, OUT_W, 2, D, inner, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, FC1_W, 2, -1, D, 0, 0, err) != BVL_OK)
        return err->status;
    const int64_t intermediate = w[FC1_W].shape[0];
    if (bvl_expect(r->op, b, FC2_W, 2, D, intermediate, 0, 0, err) != BVL_OK ||
        expect_bias(r, b, QKV_B, parts * inner, err) != BVL_OK ||
        expect_bias(r, b, OUT_B, D, err) != BVL_OK || expect_bias(r, b, FC1_B, intermediate, err) != BVL_OK ||
        expect_bias(r, b, FC2_B, D, err) != BVL_OK)
        return err->status;
    for (int i = parts == 3 ? NORM1_W : NORM2_W; i <= NORM2_B; i++)
        if (bvl_expect(r->op, b, i, 1, D, 0, 0, 0, err) != BVL_OK) return err->status;
    return parts == 3 ? BVL_OK : bvl_expect(r->op, b, QUERY, 1, inner, 0, 0, 0, err);
}

static bvl_status block_fill(bvl_program *p, bvl_record *r, const bvl_build *b, int parts, bvl_error *err) {
    const bvl_array *w = b->weights;
    block *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    s->D = p->slots[r->src].cols;
    s->heads = (int64_t)b->params[P_HEADS];
    s->inner = w[QKV_W].shape[0] / parts;
    s->hd = s->inner / s->heads;
    s->intermediate = w[FC1_W].shape[0];
    s->act = (bvl_activation)b->params[P_ACT];
    bvl_linear *linears[] = {&s->qkv, &s->out, &s->fc1, &s->fc2};
    for (int i = 0; i < 4; i++) {
        if (bvl_linear_init(linears[i], p->kernels, &w[QKV_W + 2 * i], &w[QKV_B + 2 * i], b->threads, err) !=
            BVL_OK)
            return err->status;
        p->packed_bytes += bvl_linear_bytes(linears[i], p->kernels);
    }
    if (parts == 3 && bvl_norm_init(&s->norm1, &w[NORM1_W], &w[NORM1_B], b->params[P_EPS], err) != BVL_OK)
        return err->status;
    if (bvl_norm_init(&s->norm2, &w[NORM2_W], &w[NORM2_B], b->params[P_EPS], err) != BVL_OK)
        return err->status;
    return parts == 3 ? BVL_OK : bvl_copy_vector(&s->query, &w[QUERY], err);
}

static bvl_status block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "transformer_block: expected src == dst");
    if (block_check(p, r, b, 3, err) != BVL_OK || block_fill(p, r, b, 3, err) != BVL_OK) return err->status;
    block *s = r->state;
    s->causal = b->params[P_CAUSAL] != 0;
    s->pre_norm = b->params[P_PRE_NORM] != 0;
    return BVL_OK;
}

/* Scratch per token: normed rows or attention's output, then q k v or the MLP's inner rows. */
static int64_t block_shared(const bvl_program *p, const bvl_record *r, int64_t count, int64_t L) {
    const block *s = r->state;
    const int64_t rows = count * bvl_slot_rows(&p->slots[r->src], L);
    return rows * (bvl_padded(BVL_MAX(s->D, s->inner)) +
                   BVL_MAX(bvl_padded(3 * s->inner), bvl_padded(s->intermediate)));
}

static int64_t block_local(const bvl_program *p, const bvl_record *r, int64_t L) {
    const block *s = r->state;
    return bvl_attention_scratch(p->kernels, bvl_slot_rows(&p->slots[r->src], L), s->hd);
}

/* out[count * T, inner] = attention over qkv[count * T, 3 * inner]; a unit of work is an item's head. */
static void self_attention(const block *s, const bvl_run *run, int slot, float *out, int64_t ldo,
                           const float *qkv, int64_t ld, int64_t T) {
    bvl_attention_shape shape = {T, T, s->hd, ld, ld, ldo, 1.0f / sqrtf((float)s->hd), s->causal, NULL};
    const bool text =
        run->program->slots[slot].rows == BVL_ROWS_TEXT; /* attention_mask is about text alone */
    int64_t begin, end;
    bvl_share(run->count * s->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, head = u % s->heads;
        const float *q = qkv + item * T * ld + head * s->hd;
        shape.bias = text && run->key_bias ? run->key_bias + item * T : NULL;
        bvl_attention(run->kernels, out + item * T * ldo + head * s->hd, q, q + s->inner, q + 2 * s->inner,
                      &shape, run->local);
    }
}

static void block_run(const bvl_record *r, const bvl_run *run) {
    const block *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const int64_t T = bvl_slot_rows(&run->program->slots[r->src], run->inputs->L), rows = run->count * T;
    const int64_t ldx = run->program->slots[r->src].ld;
    const int64_t ldh = bvl_padded(BVL_MAX(s->D, s->inner)), ldq = bvl_padded(3 * s->inner),
                  ldm = bvl_padded(s->intermediate);
    float *x = run->slots[r->src], *h = run->shared, *wide = h + rows * ldh;

    if (s->pre_norm) {
        bvl_norm_run(&s->norm1, k, h, ldh, x, ldx, rows, team);
        bvl_barrier(team);
    }
    bvl_linear_run(&s->qkv, k, wide, ldq, s->pre_norm ? h : x, s->pre_norm ? ldh : ldx, rows, BVL_ACT_NONE,
                   NULL, 0, team);
    bvl_barrier(team);
    self_attention(s, run, r->src, h, ldh, wide, ldq, T);
    bvl_barrier(team);
    bvl_linear_run(&s->out, k, x, ldx, h, ldh, rows, BVL_ACT_NONE, x, ldx, team);
    bvl_barrier(team);

    float *in = s->pre_norm ? h : x; /* what fc1 reads: norm2(x), or norm1(x) written over x */
    bvl_norm_run(s->pre_norm ? &s->norm2 : &s->norm1, k, in, s->pre_norm ? ldh : ldx, x, ldx, rows, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc1, k, wide, ldm, in, s->pre_norm ? ldh : ldx, rows, s->act, NULL, 0, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc2, k, x, ldx, wide, ldm, rows, BVL_ACT_NONE, x, ldx, team);
    bvl_barrier(team);
    if (!s->pre_norm) {
        bvl_norm_run(&s->norm2, k, x, ldx, x, ldx, rows, team);
        bvl_barrier(team);
    }
}

const bvl_op bvl_op_transformer_block = {
    .name = "transformer_block",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", "causal", "pre_norm", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "fc1_weight", "fc1_bias", "fc2_weight",
                "fc2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", NULL},
    .build = block_build,
    .release = block_release,
    .shared = block_shared,
    .local = block_local,
    .run = block_run,
};

static bvl_status attention_pool_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (p->slots[r->dst].rows != 1 || p->slots[r->dst].cols != p->slots[r->src].cols)
        return bvl_fail(err, BVL_INVALID, "attention_pool: expected one row of %lld",
                        (long long)p->slots[r->src].cols);
    if (block_check(p, r, b, 2, err) != BVL_OK) return err->status;
    return block_fill(p, r, b, 2, err);
}

static int64_t attention_pool_shared(const bvl_program *p, const bvl_record *r, int64_t count, int64_t L) {
    const block *s = r->state;
    const int64_t rows = count * bvl_slot_rows(&p->slots[r->src], L);
    return rows * bvl_padded(2 * s->inner) +
           count * (bvl_padded(BVL_MAX(s->D, s->inner)) + bvl_padded(s->intermediate));
}

static void attention_pool_run(const bvl_record *r, const bvl_run *run) {
    const block *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const bvl_slot *src = &run->program->slots[r->src];
    const int64_t T = bvl_slot_rows(src, run->inputs->L), n = run->count,
                  ldy = run->program->slots[r->dst].ld;
    const int64_t ldkv = bvl_padded(2 * s->inner), ldh = bvl_padded(BVL_MAX(s->D, s->inner)),
                  ldm = bvl_padded(s->intermediate);
    float *kv = run->shared, *h = kv + n * T * ldkv, *wide = h + n * ldh, *y = run->slots[r->dst];

    bvl_linear_run(&s->qkv, k, kv, ldkv, run->slots[r->src], src->ld, n * T, BVL_ACT_NONE, NULL, 0, team);
    bvl_barrier(team);
    bvl_attention_shape shape = {1, T, s->hd, s->inner, ldkv, ldh, 1.0f / sqrtf((float)s->hd), false, NULL};
    int64_t begin, end;
    bvl_share(n * s->heads, team.tid, team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, at = u % s->heads * s->hd;
        const float *keys = kv + item * T * ldkv + at;
        bvl_attention(k, h + item * ldh + at, s->query + at, keys, keys + s->inner, &shape, run->local);
    }
    bvl_barrier(team);
    bvl_linear_run(&s->out, k, y, ldy, h, ldh, n, BVL_ACT_NONE, NULL, 0, team);
    bvl_barrier(team);
    bvl_norm_run(&s->norm2, k, h, ldh, y, ldy, n, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc1, k, wide, ldm, h, ldh, n, s->act, NULL, 0, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc2, k, y, ldy, wide, ldm, n, BVL_ACT_NONE, y, ldy, team);
    bvl_barrier(team);
}

const bvl_op bvl_op_attention_pool = {
    .name = "attention_pool",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "fc1_weight", "fc1_bias", "fc2_weight",
                "fc2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", "query", NULL},
    .build = attention_pool_build,
    .release = block_release,
    .shared = attention_pool_shared,
    .local = block_local,
    .run = attention_pool_run,
};
