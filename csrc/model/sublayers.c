/* sublayers.c: what the parts of a transformer block have in common. */
#include "sublayers.h"

#include <math.h>
#include <string.h>

const float *bvl_sublayer_begin(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                                const bvl_place *at, int64_t *ld) {
    *ld = at->ldx;
    if (!norm->first) return bvl_linear_load(first, at->z, at->x, ld, at->rows, run->team);
    bvl_norm_load(&norm->norm, run->kernels, first, at->h, at->x, at->ldx, at->rows, run->local, run->team);
    bvl_barrier(run->team);
    *ld = bvl_norm_operand(&norm->norm, first);
    return at->h;
}

void bvl_sublayer_add(const bvl_run *run, const bvl_linear *last, const bvl_place *at, float *z,
                      const float *y, int64_t ldy, bool direct) {
    const float *a = direct ? y : bvl_linear_load(last, z, y, &ldy, at->rows, run->team);
    bvl_linear_run(last, run->kernels, at->x, at->ldx, a, ldy, at->rows,
                   (bvl_epilogue){.residual = at->x, .ldr = at->ldx}, run->team);
}

void bvl_sublayer_end(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_place *at) {
    bvl_barrier(run->team);
    if (norm->first) return;
    bvl_norm_run(&norm->norm, run->kernels, at->x, at->ldx, at->x, at->ldx, at->rows, run->team);
    bvl_barrier(run->team);
}

void bvl_sublayer_words(const bvl_sublayer_norm *norm, const bvl_linear *first, const bvl_linear *last,
                        bvl_row_words *words) {
    words->narrow = BVL_MAX(words->narrow, bvl_norm_operand(&norm->norm, first));
    words->operand = BVL_MAX(words->operand, bvl_linear_operand(last));
    if (!norm->first) words->operand = BVL_MAX(words->operand, bvl_linear_operand(first));
}

bvl_status bvl_affine_expect(const bvl_record *r, const bvl_build *b, int at, int64_t N, int64_t K,
                             bvl_error *err) {
    const bvl_array *weight = &b->weights[at], *bias = weight + 1;
    if (bvl_expect(r->op, b, at, 2, N, K, 0, 0, err) != BVL_OK) return err->status;
    return bias->data ? bvl_expect(r->op, b, at + 1, 1, weight->shape[0], 0, 0, 0, err) : BVL_OK;
}

bvl_status bvl_affine_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t N,
                            int64_t K, bvl_precision precision, bvl_linear *linear, bvl_error *err) {
    if (bvl_affine_expect(r, b, at, N, K, err) != BVL_OK) return err->status;
    return bvl_linear_init(linear, &p->store, p->kernels, precision, &b->weights[at], &b->weights[at + 1],
                           b->threads, err);
}

bvl_status bvl_sublayer_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t D,
                                   bvl_sublayer_norm *norm, bvl_error *err) {
    norm->first = b->params[P_PRE_NORM] != 0;
    return bvl_norm_build(p, r, b, at, D, b->params[P_EPS], b->params[P_RMS] != 0, &norm->norm, err);
}

bool bvl_writes_operand(const bvl_program *p, const bvl_linear *next) {
    return p->precision == BVL_BFLOAT16 && p->kernels->bf16_rows &&
           2 * next->product->operand_words(next->K) == next->K;
}

void bvl_clear_tails(const bvl_heads *h, const bvl_run *run, float *q, int64_t ldq, int64_t rows) {
    const int64_t reach = run->kernels->product[BVL_BFLOAT16].operand_words(h->hd) - h->hd / 2;
    int64_t begin, end;
    if (!h->bf16 || reach <= 0) return;
    bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memset(q + i * ldq + h->inner / 2, 0, (size_t)reach * sizeof(float));
}

bool bvl_block_bf16(const bvl_program *p, int64_t hd, int64_t kv) {
    /* a product's operand may reach past the last head's query, but only into keys and values */
    return bvl_attention_bf16(p->kernels, p->precision, hd) &&
           2 * p->kernels->product[BVL_BFLOAT16].operand_words(hd) - hd <= 2 * kv;
}

bvl_status bvl_heads_build(bvl_program *p, const bvl_record *r, const bvl_build *b, bool pool, bvl_heads *h,
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
    *h = (bvl_heads){.D = D, .heads = heads, .hd = inner / heads, .inner = inner, .group = heads / kv_heads};
    h->kv = kv_heads * h->hd;
    h->scale = scale > 0 ? (float)scale : 1.0f / sqrtf((float)h->hd);
    const bvl_precision rest = pool ? BVL_FLOAT32 : p->precision;
    if (bvl_affine_build(p, r, b, QKV_W, rows, D, p->precision, &h->in, err) != BVL_OK ||
        bvl_affine_build(p, r, b, OUT_W, D, inner, rest, &h->out, err) != BVL_OK)
        return err->status;
    h->bf16 = !pool && bvl_block_bf16(p, h->hd, h->kv);
    h->direct_out = h->bf16 && bvl_writes_operand(p, &h->out);
    return BVL_OK;
}
