/* cross_attention.c: x + out(attention(q(norm(x)), the keys and values of the item's context)): these were
 * made by the operation "context" in another program (state.h).
 */
#include <string.h>

#include "../arena.h"
#include "sublayers.h"

enum { P_PART = P_OWN, P_HEADS, P_SCALE };
enum { NORM_W = 4 };

typedef struct {
    bvl_attending base;
    int64_t layer; /* of the contexts */
} cross_attention;

static bvl_status cross_attention_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    int64_t part, heads;
    if (bvl_sublayer_expect(p, r, false, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_PART, 0, BVL_TOKEN_ROWS, &part, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_HEADS, 1, 1 << 16, &heads, err) != BVL_OK)
        return err->status;
    if (p->windowed || bvl_rows_vary(&p->slots[r->src]))
        return bvl_fail(err, BVL_INVALID, "%s: found %s", r->op->name,
                        p->windowed ? "beside attention within windows" : "over the patches of pictures");
    cross_attention *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    const bvl_heads *h = &s->base.heads;
    if (bvl_heads_build(p, r, b, heads, 0, true, false, b->params[P_SCALE], &s->base.heads, err) != BVL_OK ||
        bvl_sublayer_norm_build(p, r, b, NORM_W, &s->base.norm, err) != BVL_OK)
        return err->status;
    s->base.sublayer = (bvl_sublayer){.part = (bvl_part)part, .optional = true};
    bvl_attending_words(p, &s->base);
    s->layer = p->takes.layers;
    return bvl_context_layer(&p->takes, h->heads, h->hd, h->bf16, r->op->name, err);
}

static int64_t cross_attention_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    const cross_attention *s = r->state;
    return BVL_MAX(bvl_attention_scratch(p->kernels, in->context_rows, s->base.heads.hd),
                   bvl_norm_local(&s->base.norm.norm));
}

/* Zeros behind each row of q, where the operand of the last head reaches past it: stale bits may be NaN. */
static void clear_tails(const bvl_heads *h, const bvl_run *run, float *q, int64_t ldq, int64_t rows) {
    const int64_t reach = run->kernels->product[BVL_BFLOAT16].operand_words(h->hd) - h->hd / 2;
    int64_t begin, end;
    if (!h->bf16 || reach <= 0) return;
    bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memset(q + i * ldq + h->inner / 2, 0, (size_t)reach * sizeof(float));
}

static void project(const void *state, const bvl_run *run, const bvl_place *at) {
    const bvl_attending *s = state;
    clear_tails(&s->heads, run, at->qkv, s->sublayer.ldq, at->rows);
    bvl_attending_project(s, run, at);
}

static void attend(const void *state, const bvl_run *run, int slot, const bvl_place *at, int64_t first,
                   int64_t count, int64_t T) {
    const cross_attention *s = state;
    const bvl_heads *h = &s->base.heads;
    const int64_t per = h->bf16 ? 2 : 1, to = h->direct_out ? 2 : 1, Tq = at->rows / count;
    bvl_attention_shape shape = {.Tq = Tq,
                                 .hd = h->hd,
                                 .ldq = s->base.sublayer.ldq,
                                 .ldo = at->ldh,
                                 .scale = h->scale,
                                 .bf16 = h->bf16,
                                 .out_bf16 = h->direct_out};
    int64_t begin, end;
    (void)slot, (void)T;
    bvl_share(count * h->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / h->heads, head = u % h->heads;
        const bvl_context *c = run->inputs->contexts[first + item];
        const float *packed = c->memory + s->layer * c->words + head * (c->words / h->heads);
        shape.Tk = c->rows;
        bvl_attention_packed(run->kernels, at->h + item * Tq * at->ldh + head * h->hd / to,
                             at->qkv + item * Tq * shape.ldq + head * h->hd / per, packed, &shape,
                             run->local);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_cross_attention = {
    .name = "cross_attention",
    .params = {"layer_norm_eps", "rms_norm", "pre_norm", "rows", "num_attention_heads", "attention_scale",
               NULL},
    .weights = {"q_weight", "q_bias", "out_weight", "out_bias", "norm_weight", "norm_bias", NULL},
    .build = cross_attention_build,
    .local = cross_attention_local,
    .steps = &(const bvl_steps){project, attend, bvl_attending_add},
    .row_wise = true,
};
