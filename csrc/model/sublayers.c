/* sublayers.c: what sub-layers have in common. */
#include "sublayers.h"

#include <math.h>

const char *const bvl_part_names[] = {"all", "queries", "tokens", NULL};

const float *bvl_sublayer_begin(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                                const bvl_place *at, int64_t *ld) {
    *ld = at->ldx;
    if (!norm->first) return bvl_linear_load(first, at->z, at->x, ld, at->rows, run->team);
    bvl_norm_load(&norm->norm, run->kernels, first, at->h, at->x, at->ldx, at->rows, run->local, run->team);
    bvl_barrier(run->team);
    *ld = bvl_norm_operand(&norm->norm, first);
    return at->h;
}

void bvl_sublayer_project(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *first,
                          const bvl_place *at, float *y, int64_t ldy, bvl_epilogue epilogue) {
    for (const bvl_linear *l = first; l; l = l->next) {
        int64_t ld;
        const float *a = bvl_sublayer_begin(norm, run, l, at, &ld);
        bvl_linear_run(l, run->kernels, y, ldy, a, ld, at->rows, epilogue, run->team);
        bvl_barrier(run->team);
        y += epilogue.bf16 ? l->N / 2 : l->N;
    }
}

/* x += last(a), clipped, or its norm; the rows lie in `free` meanwhile. */
static void add_apart(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *last,
                      const bvl_place *at, const float *a, int64_t lda, float *free) {
    const int64_t D = last->N, ld = bvl_padded(D);
    int64_t begin, end;
    bvl_linear_run(last, run->kernels, free, ld, a, lda, at->rows, (bvl_epilogue){0}, run->team);
    bvl_barrier(run->team);
    if (norm->posts) bvl_norm_run(&norm->post, run->kernels, free, ld, free, ld, at->rows, run->team);
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) run->kernels->add(at->x + i * at->ldx, free + i * ld, D);
}

void bvl_sublayer_add(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_linear *last,
                      const bvl_place *at, float *z, float *y, int64_t ldy, bool direct, float *free) {
    const float *a = direct ? y : bvl_linear_take(last, run->kernels, z, y, &ldy, at->rows, run->team);
    if (norm->posts || last->low) {
        add_apart(norm, run, last, at, a, ldy, free);
        return;
    }
    bvl_linear_run(last, run->kernels, at->x, at->ldx, a, ldy, at->rows,
                   (bvl_epilogue){.residual = at->x, .ldr = at->ldx}, run->team);
}

void bvl_sublayer_end(const bvl_sublayer_norm *norm, const bvl_run *run, const bvl_place *at) {
    bvl_barrier(run->team);
    if (norm->first) return;
    bvl_norm_run(&norm->norm, run->kernels, at->x, at->ldx, at->x, at->ldx, at->rows, run->team);
    bvl_barrier(run->team);
}

void bvl_sublayer_words(bvl_program *p, const bvl_sublayer_norm *norm, const bvl_linear *first,
                        const bvl_linear *last) {
    bvl_row_words *words = &p->words;
    words->narrow = BVL_MAX(words->narrow, bvl_norm_operand(&norm->norm, first));
    words->operand = BVL_MAX(words->operand, bvl_linear_operand(last));
    if (!norm->first) words->operand = BVL_MAX(words->operand, bvl_linear_operand(first));
}

bvl_status bvl_sublayer_expect(const bvl_program *p, const bvl_record *r, bool first, bvl_error *err) {
    const bvl_record *before = p->record_count ? &p->records[p->record_count - 1] : NULL;
    const bvl_slot *slot = &p->slots[r->src];
    if (r->src != r->dst) return bvl_fail(err, BVL_INVALID, "%s: expected src == dst", r->op->name);
    if ((slot->kind == BVL_TEXT_ROWS || p->queries) && slot->rows != p->queries)
        return bvl_fail(err, BVL_INVALID, "%s: slot %s of %lld rows, %lld query tokens", r->op->name,
                        slot->name, (long long)slot->rows, (long long)p->queries);
    if (first || (before && before->op->steps && before->src == r->src)) return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "%s: expected after another sub-layer over the same slot", r->op->name);
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

bvl_status bvl_bounds_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, bool own,
                            bvl_linear *linear, bvl_error *err) {
    const bvl_array *reads = &b->weights[at], *gives = &b->weights[at + 1];
    if (!reads->data && !gives->data) return BVL_OK;
    if (!own)
        return bvl_fail(err, BVL_INVALID, "%s: %s: found where the norm comes last, expected it first",
                        r->op->name, r->op->weights[at]);
    int64_t parts = 0, N = 0, n = 0;
    for (bvl_linear *l = linear; l; l = l->next) parts++, N += l->N;
    float *read, *given;
    if (bvl_expect(r->op, b, at, 2, 2 * parts, linear->K, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, at + 1, 2, 2, N, 0, 0, err) != BVL_OK ||
        bvl_copy_vector(&read, &p->store, reads, err) != BVL_OK ||
        bvl_copy_vector(&given, &p->store, gives, err) != BVL_OK)
        return err->status;
    for (bvl_linear *l = linear; l; n += l->N, read += 2 * l->K, l = l->next) {
        l->reads = read;
        l->low = given + n;
        l->high = given + N + n;
    }
    p->words.wide = BVL_MAX(p->words.wide, bvl_padded(N));
    p->words.narrow = BVL_MAX(p->words.narrow, bvl_padded(p->slots[r->src].cols));
    return BVL_OK;
}

bvl_status bvl_apart_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                           const int64_t *rows, int parts, bvl_precision precision, bvl_linear *first,
                           bvl_linear *rest, bvl_error *err) {
    bvl_array weight = b->weights[at], bias = b->weights[at + 1];
    const int64_t K = weight.shape[1];
    if (bvl_affine_expect(r, b, at, -1, K, err) != BVL_OK) return err->status;
    bvl_linear *linear = first;
    for (int i = 0; i < parts; i++) {
        weight.shape[0] = bias.shape[0] = rows[i];
        if (bvl_linear_init(linear, &p->store, p->kernels, precision, &weight, &bias, b->threads, err) !=
            BVL_OK)
            return err->status;
        weight.data += rows[i] * K;
        if (bias.data) bias.data += rows[i];
        if (i + 1 < parts) linear = linear->next = &rest[i];
    }
    return BVL_OK;
}

bvl_status bvl_sublayer_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                                   bvl_sublayer_norm *norm, bvl_error *err) {
    norm->first = b->params[P_PRE_NORM] != 0;
    norm->norm.D = p->slots[r->src].cols;
    if (norm->first && !b->weights[at].data && !b->weights[at + 1].data) return BVL_OK; /* none */
    return bvl_norm_build(p, r, b, at, p->slots[r->src].cols, b->params[P_EPS], b->params[P_RMS] != 0,
                          &norm->norm, err);
}

bvl_status bvl_post_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at,
                               bvl_sublayer_norm *norm, bvl_error *err) {
    norm->posts = b->weights[at].data != NULL;
    if (!norm->posts) return BVL_OK;
    const int64_t D = p->slots[r->src].cols;
    if (!norm->first)
        return bvl_fail(err, BVL_INVALID, "%s: %s: given, expected none where the norm comes last",
                        r->op->name, r->op->weights[at]);
    p->words.wide = BVL_MAX(p->words.wide, bvl_padded(D));
    p->words.narrow = BVL_MAX(p->words.narrow, bvl_padded(D));
    return bvl_norm_build(p, r, b, at, D, b->params[P_EPS], b->params[P_RMS] != 0, &norm->post, err);
}

bool bvl_writes_operand(const bvl_program *p, const bvl_linear *next) {
    return p->precision == BVL_BFLOAT16 && p->kernels->bf16_rows &&
           2 * next->product->operand_words(next->K) == next->K;
}

bool bvl_heads_bf16(const bvl_program *p, int64_t hd, int64_t kv) {
    /* a product's operand may reach past the last head's query, but only into keys and values */
    return bvl_attention_bf16(p->kernels, p->precision, hd) &&
           2 * p->kernels->product[BVL_BFLOAT16].operand_words(hd) - hd <= 2 * kv;
}

enum { IN_W, IN_B, OUT_W, OUT_B };

bvl_status bvl_heads_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int64_t heads,
                           int64_t kv_heads, bool queries, bool apart, double scale, bvl_heads *h,
                           bvl_error *err) {
    const int64_t D = p->slots[r->src].cols, shared = kv_heads ? kv_heads : heads;
    if (bvl_expect(r->op, b, IN_W, 2, -1, D, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, OUT_W, 2, D, -1, 0, 0, err) != BVL_OK)
        return err->status;
    const int64_t rows = b->weights[IN_W].shape[0], inner = b->weights[OUT_W].shape[1];
    if (heads < 1 || kv_heads < 0 || heads % shared || inner % heads)
        return bvl_fail(
            err, BVL_INVALID,
            "%s: out_weight of %lld columns, %lld heads, %lld of keys: expected a multiple of the "
            "heads, and these of the heads of keys",
            r->op->name, (long long)inner, (long long)heads, (long long)shared);
    const int64_t wanted = (queries ? inner : 0) + 2 * kv_heads * (inner / heads);
    if (rows != wanted)
        return bvl_fail(err, BVL_INVALID, "%s: %s of %lld rows, expected %lld", r->op->name,
                        r->op->weights[IN_W], (long long)rows, (long long)wanted);
    if (!(scale >= 0))
        return bvl_fail(err, BVL_INVALID, "%s: attention_scale: found %g, expected 0 or more", r->op->name,
                        scale);
    *h = (bvl_heads){.D = D, .heads = heads, .hd = inner / heads, .inner = inner, .group = heads / shared};
    h->kv = shared * h->hd;
    h->scale = scale > 0 ? (float)scale : 1.0f / sqrtf((float)h->hd);
    const bvl_precision rest = queries ? p->precision : BVL_FLOAT32; /* a pool's one row */
    const int64_t parts[] = {h->inner, h->kv, h->kv};
    if ((apart ? bvl_apart_build(p, r, b, IN_W, parts, 3, p->precision, &h->in, h->rest, err)
               : bvl_affine_build(p, r, b, IN_W, rows, D, p->precision, &h->in, err)) != BVL_OK ||
        bvl_affine_build(p, r, b, OUT_W, D, inner, rest, &h->out, err) != BVL_OK)
        return err->status;
    h->bf16 = queries && bvl_heads_bf16(p, h->hd, h->kv);
    h->direct_out = h->bf16 && bvl_writes_operand(p, &h->out);
    return BVL_OK;
}

void bvl_attending_words(bvl_program *p, bvl_attending *s) {
    const bvl_heads *h = &s->heads;
    s->sublayer.ldq = bvl_words_between(h->inner + 2 * h->kv, h->bf16);
    s->sublayer.inner = s->norm.posts || h->out.low;
    bvl_sublayer_words(p, &s->norm, &h->in, &h->out);
    p->words.narrow = BVL_MAX(p->words.narrow, bvl_padded(BVL_MAX(h->D, h->inner)));
    p->words.wide = BVL_MAX(p->words.wide, s->sublayer.ldq);
}

void bvl_attending_project(const void *state, const bvl_run *run, const bvl_place *at) {
    const bvl_attending *s = state;
    bvl_sublayer_project(&s->norm, run, &s->heads.in, at, at->qkv, s->sublayer.ldq,
                         (bvl_epilogue){.bf16 = s->heads.bf16});
}

void bvl_attending_add(const void *state, const bvl_run *run, const bvl_place *at) {
    const bvl_attending *s = state;
    bvl_sublayer_add(&s->norm, run, &s->heads.out, at, at->z, at->h, at->ldh, s->heads.direct_out, at->wide);
    bvl_sublayer_end(&s->norm, run, at);
}
