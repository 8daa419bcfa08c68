/* block.c: the transformer block, and attention pooling, which is one whose only query is learned.
 *
 *   pre-norm (CLIP, SigLIP)                  post-norm (BERT)
 *   x = x + out(attention(norm1(x)))         x = norm1(x + out(attention(x)))
 *   x = x + fc2(act(fc1(norm2(x))))          x = norm2(x + fc2(act(fc1(x))))
 *
 * attention: softmax(Q K^T / sqrt(hd) + mask) V per head; Q, K, V come from one product.
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
#include "../ops/rows.h"
#include "ops.h"

typedef struct {
    bvl_linear qkv, out, fc1, fc2;             /* attention_pool: qkv holds k and v */
    bvl_norm norm1, norm2;                     /* attention_pool: norm2 alone */
    float *query;                              /* attention_pool: [D] */
    int64_t D, heads, hd, inner, intermediate; /* inner = heads * hd */
    bvl_activation act;
    bool causal, pre_norm;
    bool bf16;                   /* q, k, v and attention are bfloat16 */
    bool direct_out, direct_fc2; /* what comes before writes that product's operand itself */
} block;

enum { P_HEADS, P_ACT, P_EPS, P_CAUSAL, P_PRE_NORM };
enum { QKV_W, QKV_B, OUT_W, OUT_B, FC1_W, FC1_B, FC2_W, FC2_B, NORM1_W, NORM1_B, NORM2_W, NORM2_B, QUERY };

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
        const bvl_precision precision = parts == 3 || i == 0 ? p->precision : BVL_FLOAT32;
        if (bvl_linear_init(linears[i], &p->store, p->kernels, precision, &w[QKV_W + 2 * i],
                            &w[QKV_B + 2 * i], b->threads, err) != BVL_OK)
            return err->status;
    }
    if (parts == 3 &&
        bvl_norm_init(&s->norm1, &p->store, &w[NORM1_W], &w[NORM1_B], b->params[P_EPS], err) != BVL_OK)
        return err->status;
    if (bvl_norm_init(&s->norm2, &p->store, &w[NORM2_W], &w[NORM2_B], b->params[P_EPS], err) != BVL_OK)
        return err->status;
    return parts == 3 ? BVL_OK : bvl_copy_vector(&s->query, &p->store, &w[QUERY], err);
}

/* Whether an epilogue that writes bfloat16 rows writes the operand of `next`, with no padding to clear. */
static bool writes_operand(const bvl_program *p, const bvl_linear *next) {
    return p->precision == BVL_BFLOAT16 && p->kernels->bf16_rows &&
           2 * next->product->operand_words(next->K) == next->K;
}

static bvl_status block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "transformer_block: expected src == dst");
    if (block_check(p, r, b, 3, err) != BVL_OK || block_fill(p, r, b, 3, err) != BVL_OK) return err->status;
    block *s = r->state;
    s->causal = b->params[P_CAUSAL] != 0;
    s->pre_norm = b->params[P_PRE_NORM] != 0;
    /* a product's operand may reach past the last head's query, but only into keys and values */
    s->bf16 = bvl_attention_bf16(p->kernels, p->precision, s->hd) &&
              2 * p->kernels->product[BVL_BFLOAT16].operand_words(s->hd) - s->hd <= 2 * s->inner;
    s->direct_out = s->bf16 && writes_operand(p, &s->out);
    s->direct_fc2 = writes_operand(p, &s->fc2);
    return BVL_OK;
}

/* Words between rows of q k v, of attention's output and of the MLP's inner activations. */
static int64_t block_ld(int64_t cols, bool bf16) {
    return bvl_padded(bf16 ? (cols + 1) / 2 : cols);
}

/* Words per token of the three parts of the scratch: normed rows or attention's output; q k v or the MLP's
 * inner rows; operand rows. */
static void block_parts(const block *s, int64_t *narrow, int64_t *wide, int64_t *operand) {
    *narrow = BVL_MAX(bvl_padded(BVL_MAX(s->D, s->inner)),
                      BVL_MAX(bvl_norm_operand(&s->norm1, &s->qkv), bvl_norm_operand(&s->norm2, &s->fc1)));
    *wide = BVL_MAX(block_ld(3 * s->inner, s->bf16), block_ld(s->intermediate, s->direct_fc2));
    *operand = BVL_MAX(bvl_linear_operand(&s->out), bvl_linear_operand(&s->fc2));
    if (!s->pre_norm)
        *operand = BVL_MAX(*operand, BVL_MAX(bvl_linear_operand(&s->qkv), bvl_linear_operand(&s->fc1)));
}

static int64_t block_shared(const bvl_program *p, const bvl_record *r, int64_t count, int64_t L) {
    int64_t narrow, wide, operand;
    block_parts(r->state, &narrow, &wide, &operand);
    return count * bvl_slot_rows(&p->slots[r->src], L) * (narrow + wide + operand);
}

static int64_t block_local(const bvl_program *p, const bvl_record *r, int64_t L) {
    const block *s = r->state;
    return BVL_MAX(bvl_attention_scratch(p->kernels, bvl_slot_rows(&p->slots[r->src], L), s->hd),
                   bvl_padded(s->D));
}

/* out[rows, inner] = attention over qkv[count * T, 3 * inner]; a unit of work is an item's head. Rows are all
 * tokens, or the one that run->pool takes of each item. */
static void self_attention(const block *s, const bvl_run *run, int slot, float *out, int64_t ldo,
                           const float *qkv, int64_t ld, int64_t T) {
    bvl_attention_shape shape = {.Tq = run->pool ? 1 : T,
                                 .Tk = T,
                                 .hd = s->hd,
                                 .ldq = ld,
                                 .ldkv = ld,
                                 .ldo = ldo,
                                 .scale = 1.0f / sqrtf((float)s->hd),
                                 .causal = s->causal,
                                 .bf16 = s->bf16,
                                 .out_bf16 = s->direct_out};
    const bool text =
        run->program->slots[slot].rows == BVL_ROWS_TEXT;            /* attention_mask is about text alone */
    const int64_t in = s->bf16 ? 2 : 1, to = s->direct_out ? 2 : 1; /* elements in a word */
    int64_t begin, end;
    bvl_share(run->count * s->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / s->heads, head = u % s->heads;
        const float *first = qkv + item * T * ld + head * s->hd / in;
        shape.first = run->pool ? run->pool->op->row(run->pool, run, item) : 0;
        shape.bias = text && run->key_bias ? run->key_bias + item * T : NULL;
        bvl_attention(run->kernels, out + item * shape.Tq * ldo + head * s->hd / to, first + shape.first * ld,
                      first + s->inner / in, first + 2 * s->inner / in, &shape, run->local);
    }
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

/* x += fc2(act(fc1(in))) with in = norm2(x), or x itself after norm1; the second half of a block on `rows`
 * rows. */
static void feed_forward(const block *s, const bvl_run *run, float *x, int64_t ldx, int64_t rows, float *h,
                         float *wide, float *z) {
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const int64_t ldm = block_ld(s->intermediate, s->direct_fc2);
    const float *a = h;
    int64_t ld = bvl_norm_operand(&s->norm2, &s->fc1);
    if (s->pre_norm) {
        bvl_norm_load(&s->norm2, k, &s->fc1, h, x, ldx, rows, run->local, team);
        bvl_barrier(team);
    } else {
        bvl_norm_run(&s->norm1, k, x, ldx, x, ldx, rows, team);
        bvl_barrier(team);
        ld = ldx;
        a = bvl_linear_load(&s->fc1, z, x, &ld, rows, team);
    }
    bvl_linear_run(&s->fc1, k, wide, ldm, a, ld, rows, (bvl_epilogue){.act = s->act, .bf16 = s->direct_fc2},
                   team);
    bvl_barrier(team);
    ld = ldm;
    a = s->direct_fc2 ? wide : bvl_linear_load(&s->fc2, z, wide, &ld, rows, team);
    bvl_linear_run(&s->fc2, k, x, ldx, a, ld, rows, (bvl_epilogue){.residual = x, .ldr = ldx}, team);
    bvl_barrier(team);
    if (!s->pre_norm) {
        bvl_norm_run(&s->norm2, k, x, ldx, x, ldx, rows, team);
        bvl_barrier(team);
    }
}

static void block_run(const bvl_record *r, const bvl_run *run) {
    const block *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_team team = run->team;
    const int64_t T = bvl_slot_rows(&run->program->slots[r->src], run->inputs->L), tokens = run->count * T;
    const int64_t ldx = run->program->slots[r->src].ld, ldq = block_ld(3 * s->inner, s->bf16);
    int64_t narrow, most, operand, ld = ldx, ldr;
    block_parts(s, &narrow, &most, &operand);
    float *x = run->slots[r->src], *h = run->shared, *wide = h + tokens * narrow, *z = wide + tokens * most;
    const float *a = h;

    if (s->pre_norm) {
        bvl_norm_load(&s->norm1, k, &s->qkv, h, x, ldx, tokens, run->local, team);
        bvl_barrier(team);
        ld = bvl_norm_operand(&s->norm1, &s->qkv);
    } else {
        a = bvl_linear_load(&s->qkv, z, x, &ld, tokens, team);
    }
    bvl_linear_run(&s->qkv, k, wide, ldq, a, ld, tokens, (bvl_epilogue){.bf16 = s->bf16}, team);
    bvl_barrier(team);
    ld = block_ld(s->inner, s->direct_out);
    self_attention(s, run, r->src, h, ld, wide, ldq, T);
    bvl_barrier(team);
    if (run->pool) keep_pooled(run, x, ldx, T, s->D);
    const int64_t rows = bvl_run_rows(run, r->src, &ldr); /* from here on, perhaps one row an item */
    a = s->direct_out ? h : bvl_linear_load(&s->out, z, h, &ld, rows, team);
    bvl_linear_run(&s->out, k, x, ldr, a, ld, rows, (bvl_epilogue){.residual = x, .ldr = ldr}, team);
    bvl_barrier(team);
    feed_forward(s, run, x, ldr, rows, h, wide, z);
}

const bvl_op bvl_op_transformer_block = {
    .name = "transformer_block",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", "causal", "pre_norm", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "fc1_weight", "fc1_bias", "fc2_weight",
                "fc2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", NULL},
    .build = block_build,
    .shared = block_shared,
    .local = block_local,
    .run = block_run,
    .prunes = true,
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
    return rows * (bvl_padded(2 * s->inner) + bvl_linear_operand(&s->qkv)) +
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
    float *kv = run->shared, *h = kv + n * T * ldkv, *wide = h + n * ldh, *z = wide + n * ldm;
    float *y = run->slots[r->dst];
    int64_t ld = src->ld;

    const float *a = bvl_linear_load(&s->qkv, z, run->slots[r->src], &ld, n * T, team);
    bvl_linear_run(&s->qkv, k, kv, ldkv, a, ld, n * T, (bvl_epilogue){0}, team);
    bvl_barrier(team);
    const bvl_attention_shape shape = {.Tq = 1,
                                       .Tk = T,
                                       .hd = s->hd,
                                       .ldq = s->inner,
                                       .ldkv = ldkv,
                                       .ldo = ldh,
                                       .scale = 1.0f / sqrtf((float)s->hd)};
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
    bvl_norm_run(&s->norm2, k, h, ldh, y, ldy, n, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc1, k, wide, ldm, h, ldh, n, (bvl_epilogue){.act = s->act}, team);
    bvl_barrier(team);
    bvl_linear_run(&s->fc2, k, y, ldy, wide, ldm, n, (bvl_epilogue){.residual = y, .ldr = ldy}, team);
    bvl_barrier(team);
}

const bvl_op bvl_op_attention_pool = {
    .name = "attention_pool",
    .params = {"num_attention_heads", "activation", "layer_norm_eps", NULL},
    .weights = {"qkv_weight", "qkv_bias", "out_weight", "out_bias", "fc1_weight", "fc1_bias", "fc2_weight",
                "fc2_bias", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias", "query", NULL},
    .build = attention_pool_build,
    .shared = attention_pool_shared,
    .local = block_local,
    .run = attention_pool_run,
};
