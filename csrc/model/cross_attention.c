/* cross_attention.c: x + out(attention(q(norm(x)), the keys and values of the item's context)): these were
 * made by the operation "context" in another program (state.h).
 */
#include "sublayers.h"

bvl_status bvl_cross_attention_build(bvl_program *p, const bvl_record *r, const bvl_build *b,
                                     const bvl_heads *like, bvl_cross_attention *s, bvl_error *err) {
    s->layer = -1;
    if (!b->weights[CROSS_Q_W].data) return BVL_OK;
    if (like->group != 1)
        return bvl_fail(err, BVL_INVALID,
                        "%s: cross_q_weight: found where heads share keys, expected neither", r->op->name);
    s->heads = *like;
    if (bvl_affine_build(p, r, b, CROSS_Q_W, like->inner, like->D, p->precision, &s->heads.in, err) !=
            BVL_OK ||
        bvl_affine_build(p, r, b, CROSS_OUT_W, like->D, like->inner, p->precision, &s->heads.out, err) !=
            BVL_OK ||
        bvl_sublayer_norm_build(p, r, b, CROSS_NORM_W, like->D, &s->norm, err) != BVL_OK)
        return err->status;
    s->layer = p->takes.layers;
    return bvl_context_layer(&p->takes, like->heads, like->hd, like->bf16, r->op->name, err);
}

void bvl_cross_attention_words(const bvl_cross_attention *s, bvl_row_words *words) {
    if (s->layer >= 0) bvl_sublayer_words(&s->norm, &s->heads.in, &s->heads.out, words);
}

/* out[rows, inner] = attention of q[rows, inner], Tq rows an item. */
static void attend(const bvl_cross_attention *s, const bvl_run *run, int64_t first, int64_t count, float *out,
                   int64_t ldo, const float *q, int64_t ldq, int64_t Tq) {
    const bvl_heads *h = &s->heads;
    bvl_attention_shape shape = {.Tq = Tq,
                                 .hd = h->hd,
                                 .ldq = ldq,
                                 .ldo = ldo,
                                 .scale = h->scale,
                                 .bf16 = h->bf16,
                                 .out_bf16 = h->direct_out};
    const int64_t per = h->bf16 ? 2 : 1, to = h->direct_out ? 2 : 1;
    int64_t begin, end;
    bvl_share(count * h->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / h->heads, head = u % h->heads;
        const bvl_context *c = run->inputs->contexts[first + item];
        const float *packed = c->memory + s->layer * c->words + head * (c->words / h->heads);
        shape.Tk = c->rows;
        bvl_attention_packed(run->kernels, out + item * Tq * ldo + head * h->hd / to,
                             q + item * Tq * ldq + head * h->hd / per, packed, &shape, run->local);
    }
    bvl_barrier(run->team);
}

void bvl_cross_attention_run(const bvl_cross_attention *s, const bvl_run *run, int64_t first, int64_t count,
                             const bvl_place *at) {
    const bvl_heads *h = &s->heads;
    const int64_t ldq = bvl_qkv_ld(h), ldo = bvl_words_between(h->inner, h->direct_out);
    int64_t ld;
    const float *a = bvl_sublayer_begin(&s->norm, run, &h->in, at, &ld);
    bvl_clear_tails(h, run, at->wide, ldq, at->rows);
    bvl_linear_run(&h->in, run->kernels, at->wide, ldq, a, ld, at->rows, (bvl_epilogue){.bf16 = h->bf16},
                   run->team);
    bvl_barrier(run->team);
    attend(s, run, first, count, at->h, ldo, at->wide, ldq, at->rows / count);
    bvl_sublayer_add(run, &h->out, at, at->z, at->h, ldo, h->direct_out);
    bvl_sublayer_end(&s->norm, run, at);
}
