/* block_build.c: the parameters of a transformer block, checked and packed; and the scratch it runs in. */
#include <math.h>

#include "../arena.h"
#include "block.h"

/* That weight number `at` is [N, K] and the next, which may be absent, a bias for it; N -1: any. */
static bvl_status linear_expect(const bvl_record *r, const bvl_build *b, int at, int64_t N, int64_t K,
                                bvl_error *err) {
    const bvl_array *weight = &b->weights[at], *bias = weight + 1;
    if (bvl_expect(r->op, b, at, 2, N, K, 0, 0, err) != BVL_OK) return err->status;
    return bias->data ? bvl_expect(r->op, b, at + 1, 1, weight->shape[0], 0, 0, 0, err) : BVL_OK;
}

static bvl_status linear_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t N,
                               int64_t K, bvl_precision precision, bvl_linear *linear, bvl_error *err) {
    if (linear_expect(r, b, at, N, K, err) != BVL_OK) return err->status;
    return bvl_linear_init(linear, &p->store, p->kernels, precision, &b->weights[at], &b->weights[at + 1],
                           b->threads, err);
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

/* The products of f->parts parts, fc1 and fc2 of each side by side; packed files keep this order. */
static bvl_status parts_build(bvl_program *p, const bvl_build *b, int at, bvl_precision precision,
                              bvl_feed_forward *f, bvl_error *err) {
    const bvl_array *fc1 = &b->weights[at + FC1_W], *fc2 = &b->weights[at + FC2_W];
    const int64_t D = fc1->shape[1], rows = f->gated ? 2 : 1;
    for (int i = 0; i < f->parts; i++) {
        const int64_t first = i * f->width, width = BVL_MIN(f->width, f->intermediate - first);
        bvl_array bias1 = fc1[1], bias2 = {0};
        if (bias1.data) bias1.data += first, bias1.shape[0] = rows * width;
        if (i == 0) bias2 = fc2[1];
        if (bvl_linear_init_strided(&f->fc1[i], &p->store, p->kernels, precision, fc1->data + first * D, D,
                                    rows * width, D, &bias1, b->threads, err) != BVL_OK ||
            bvl_linear_init_strided(&f->fc2[i], &p->store, p->kernels, precision, fc2->data + first,
                                    f->intermediate, D, width, &bias2, b->threads, err) != BVL_OK)
            return err->status;
    }
    return BVL_OK;
}

bvl_status bvl_feed_forward_build(bvl_program *p, bvl_record *r, const bvl_build *b, int at,
                                  bvl_precision precision, bvl_feed_forward *f, bvl_error *err) {
    const int64_t D = p->slots[r->src].cols, most = p->kernels->inner_columns;
    f->gated = b->params[P_GATED] != 0;
    if (linear_expect(r, b, at + FC1_W, -1, D, err) != BVL_OK) return err->status;
    const int64_t rows = b->weights[at + FC1_W].shape[0];
    f->intermediate = f->gated ? rows / 2 : rows;
    if (f->gated && rows % 2)
        return bvl_fail(err, BVL_INVALID, "%s: %s: %lld rows, expected as many of gates as of what they gate",
                        r->op->name, r->op->weights[at + FC1_W], (long long)rows);
    if (linear_expect(r, b, at + FC2_W, D, f->intermediate, err) != BVL_OK) return err->status;
    const bool part = most && b->params[P_PRE_NORM] != 0 && !f->gated && precision != BVL_FLOAT32 &&
                      precision != BVL_INT8; /* whose operand has one scale for all inner columns */
    f->parts = part ? (int)BVL_MIN((f->intermediate + most - 1) / most, BVL_FFN_PARTS) : 1;
    f->width = f->intermediate;
    if (f->parts > 1) f->width = bvl_round_up((f->intermediate + f->parts - 1) / f->parts, p->kernels->nr);
    f->parts = (int)((f->intermediate + f->width - 1) / f->width);
    if (parts_build(p, b, at, precision, f, err) != BVL_OK) return err->status;
    f->direct = !f->gated && precision == p->precision && writes_operand(p, &f->fc2[0]) &&
                writes_operand(p, &f->fc2[f->parts - 1]);
    return norm_build(p, r, b, at + NORM_W, D, &f->norm, err);
}

bvl_status bvl_attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bool pool, bvl_error *err) {
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
    bvl_layer *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    *s = (bvl_layer){.D = D, .heads = heads, .hd = inner / heads, .inner = inner, .layer = -1, .cached = -1};
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
    bvl_layer *s = r->state;
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

bool bvl_block_bf16(const bvl_program *p, int64_t hd, int64_t kv) {
    /* a product's operand may reach past the last head's query, but only into keys and values */
    return bvl_attention_bf16(p->kernels, p->precision, hd) &&
           2 * p->kernels->product[BVL_BFLOAT16].operand_words(hd) - hd <= 2 * kv;
}

/* Windows: which rows they are of, and their bias by pair. */
static bvl_status window_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    bvl_layer *s = r->state;
    const bvl_slot *slot = &p->slots[r->src];
    const int64_t W = s->window = (int64_t)b->params[P_WINDOW];
    if (slot->text || s->causal || s->rotary || p->queries || b->weights[CROSS_Q_W].data || W < 1 ||
        slot->rows % W)
        return bvl_fail(err, BVL_INVALID,
                        "%s: window: found %lld, expected a divisor of the %lld rows of a picture alone",
                        r->op->name, (long long)W, (long long)slot->rows);
    if (bvl_order_build(p, r, b, WINDOW_ROWS, slot->rows, slot->rows, &s->order, err) != BVL_OK)
        return err->status;
    p->windowed = true;
    s->apart = slot->rows > W || b->weights[WINDOW_REGIONS].data;
    for (int64_t i = 0; i < W && !s->apart; i++) s->apart = s->order[i] != (float)i;
    if (b->weights[RELATIVE].data &&
        (bvl_expect(r->op, b, RELATIVE, 2, s->heads, W * W, 0, 0, err) != BVL_OK ||
         bvl_copy_vector(&s->relative, &p->store, &b->weights[RELATIVE], err) != BVL_OK))
        return err->status;
    if (!b->weights[WINDOW_REGIONS].data) return BVL_OK;
    if (!s->relative || bvl_expect(r->op, b, WINDOW_REGIONS, 1, slot->rows, 0, 0, 0, err) != BVL_OK)
        return s->relative
                   ? err->status
                   : bvl_fail(err, BVL_INVALID, "%s: window_regions: expected a relative_bias", r->op->name);
    return bvl_copy_vector(&s->regions, &p->store, &b->weights[WINDOW_REGIONS], err);
}

/* How attention sees positions: a bias by distance or pair, or queries and keys turned. */
static bvl_status positions_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    bvl_layer *s = r->state;
    const bvl_array *relative = &b->weights[RELATIVE];
    const bvl_slot *slot = &p->slots[r->src];
    s->rotary = b->params[P_ROTARY] != 0;
    if (s->rotary && (!slot->text || slot->rows || !p->rotary || 2 * p->rotary_half > s->hd))
        return bvl_fail(
            err, BVL_INVALID,
            "%s: rotary: found %lld frequencies, expected 1 to %lld, and the rows of a text alone",
            r->op->name, (long long)p->rotary_half, (long long)s->hd / 2);
    if (b->params[P_WINDOW] != 0) return window_build(p, r, b, err);
    if (b->weights[WINDOW_ROWS].data || b->weights[WINDOW_REGIONS].data)
        return bvl_fail(err, BVL_INVALID, "%s: window_rows, window_regions: given, and window is 0",
                        r->op->name);
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

bvl_status bvl_block_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *slot = &p->slots[r->src];
    const bool queries = b->weights[QUERY_FFN].data != NULL;
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "transformer_block: expected src == dst");
    if (queries != (p->queries != 0) || ((slot->text || queries) && slot->rows != p->queries))
        return bvl_fail(err, BVL_INVALID,
                        "transformer_block: slot %s of %lld rows, %lld query tokens, weights for %s",
                        slot->name, (long long)slot->rows, (long long)p->queries, queries ? "some" : "none");
    if (bvl_attention_build(p, r, b, false, err) != BVL_OK) return err->status;
    bvl_layer *s = r->state;
    s->causal = b->params[P_CAUSAL] != 0;
    s->pre_norm = b->params[P_PRE_NORM] != 0;
    if (norm_build(p, r, b, NORM1_W, s->D, &s->norm1, err) != BVL_OK) return err->status;
    if ((b->weights[FFN].data || slot->text) &&
        bvl_feed_forward_build(p, r, b, FFN, p->precision, &s->ffn, err) != BVL_OK)
        return err->status;
    if (queries && bvl_feed_forward_build(p, r, b, QUERY_FFN, p->precision, &s->query_ffn, err) != BVL_OK)
        return err->status;
    if (!queries && !s->ffn.intermediate)
        return bvl_expect(r->op, b, FFN, 2, -1, s->D, 0, 0, err); /* says that it is missing */
    s->bf16 = bvl_block_bf16(p, s->hd, s->kv);
    s->direct_out = s->bf16 && writes_operand(p, &s->out);
    if (cross_build(p, r, b, err) != BVL_OK || positions_build(p, r, b, err) != BVL_OK) return err->status;
    if (s->causal && slot->text && slot->rows == 0) {
        s->cached = p->cached_layers;
        p->cached_words[p->cached_layers++] = bvl_block_ld(2 * s->kv, s->bf16);
    } else if (slot->text) {
        p->uncached = true;
    }
    return BVL_OK;
}

void bvl_block_parts(const bvl_layer *s, int64_t *narrow, int64_t *wide, int64_t *operand) {
    *narrow = BVL_MAX(bvl_padded(BVL_MAX(s->D, s->inner)), bvl_norm_operand(&s->norm1, &s->qkv));
    *wide = bvl_qkv_ld(s);
    *operand = BVL_MAX(bvl_linear_operand(&s->out), s->pre_norm ? 0 : bvl_linear_operand(&s->qkv));
    for (int i = 0; i < 2; i++) {
        const bvl_feed_forward *f = i ? &s->query_ffn : &s->ffn;
        if (!f->intermediate) continue;
        *narrow = BVL_MAX(*narrow, bvl_norm_operand(&f->norm, &f->fc1[0]));
        *wide = BVL_MAX(*wide, bvl_inner_ld(f, f->parts));
        *operand = BVL_MAX(*operand, f->parts * bvl_linear_operand(&f->fc2[0]));
        if (!s->pre_norm) *operand = BVL_MAX(*operand, bvl_linear_operand(&f->fc1[0]));
    }
    if (s->layer < 0) return;
    *narrow = BVL_MAX(*narrow, bvl_norm_operand(&s->cross_norm, &s->cross_q));
    *operand = BVL_MAX(*operand, bvl_linear_operand(&s->cross_out));
    if (!s->pre_norm) *operand = BVL_MAX(*operand, bvl_linear_operand(&s->cross_q));
}

int64_t bvl_windows_at_once(const bvl_layer *s) {
    return BVL_MAX(1, 128 / s->window);
}

int64_t bvl_block_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    int64_t narrow, wide, operand;
    if (((const bvl_layer *)r->state)->apart) return 0;
    bvl_block_parts(r->state, &narrow, &wide, &operand);
    return count * bvl_slot_rows(&p->slots[r->src], in) * (narrow + wide + operand);
}

int64_t bvl_block_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const bvl_layer *s = r->state;
    const bvl_slot *slot = &p->slots[r->src];
    if (s->apart) { /* the rows, all that is the team's elsewhere, and this worker's own */
        int64_t narrow, wide, operand;
        bvl_block_parts(s, &narrow, &wide, &operand);
        const int64_t apart = s->regions ? s->window * s->window : 0;
        return bvl_windows_at_once(s) * s->window * (slot->ld + narrow + wide + operand) +
               BVL_MAX(bvl_attention_scratch(p->kernels, s->window, s->hd) + apart,
                       bvl_norm_local(&s->norm1));
    }
    const int64_t keys = BVL_MAX(in->past + bvl_slot_rows(slot, in), in->context_rows);
    return BVL_MAX(bvl_attention_scratch(p->kernels, keys, s->hd), bvl_norm_local(&s->norm1));
}
