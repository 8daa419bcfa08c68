/* context.c: the operation that makes one layer of the contexts other programs attend to (state.h).
 *
 *   [k v] = x Wkv^T + b          x [T, D]: a picture's tokens, or those of a text that attention_mask keeps
 *
 * packed per head. Records of a program are layers in the order they were added.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/attention.h"
#include "../ops/linear.h"
#include "ops.h"

typedef struct {
    bvl_linear kv;
    int64_t layer, inner;
    bool bf16;
} context_state;

static bvl_status context_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t heads = (int64_t)b->params[0];
    if (bvl_expect(r->op, b, 0, 2, -1, p->slots[r->src].cols, 0, 0, err) != BVL_OK) return err->status;
    const int64_t inner = b->weights[0].shape[0] / 2;
    if (heads < 1 || b->weights[0].shape[0] % 2 || inner % heads)
        return bvl_fail(err, BVL_INVALID, "context: %lld rows of kv_weight do not split over %lld heads",
                        (long long)b->weights[0].shape[0], (long long)heads);
    if (b->weights[1].data && bvl_expect(r->op, b, 1, 1, 2 * inner, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if ((p->slots[r->src].kind == BVL_TEXT_ROWS && p->slots[r->src].rows) || bvl_rows_vary(&p->slots[r->src]))
        return bvl_fail(err, BVL_INVALID,
                        "context: of slot %s, expected query tokens, a text or a picture of one size",
                        p->slots[r->src].name);
    if (p->makes.layers && p->context_slot != r->src)
        return bvl_fail(err, BVL_INVALID, "context: of slot %s, expected %s as before", p->slots[r->src].name,
                        p->slots[p->context_slot].name);
    context_state *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for context");
    s->inner = inner;
    s->layer = p->makes.layers;
    s->bf16 = bvl_heads_bf16(p, inner / heads, inner);
    p->context_slot = r->src;
    if (bvl_linear_init(&s->kv, &p->store, p->kernels, p->precision, &b->weights[0], &b->weights[1],
                        b->threads, err) != BVL_OK)
        return err->status;
    return bvl_context_layer(&p->makes, heads, inner / heads, s->bf16, r->op->name, err);
}

static int64_t row_words(const context_state *s) {
    return bvl_padded(s->bf16 ? s->inner : 2 * s->inner);
}

static int64_t context_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                              const bvl_inputs *in) {
    const context_state *s = r->state;
    return count * bvl_slot_rows(&p->slots[r->src], in) * (row_words(s) + bvl_linear_operand(&s->kv));
}

/* Moves the rows of an item that the mask keeps to its front. */
static void keep_unmasked(float *rows, int64_t ld, const int64_t *mask, int64_t T) {
    int64_t kept = 0;
    for (int64_t t = 0; t < T; t++)
        if (mask[t]) {
            if (kept != t) memcpy(rows + kept * ld, rows + t * ld, (size_t)ld * sizeof(float));
            kept++;
        }
}

static void context_run(const bvl_record *r, const bvl_run *run) {
    const context_state *s = r->state;
    const bvl_slot *src = &run->program->slots[r->src];
    const bvl_inputs *in = run->inputs;
    const bvl_context_shape *shape = &run->program->makes;
    const int64_t T = bvl_slot_rows(src, in), rows = run->count * T, ld = row_words(s);
    const int64_t per = s->bf16 ? 2 : 1;
    float *kv = run->shared;
    int64_t lda = src->ld, begin, end;
    const float *a = bvl_linear_load(&s->kv, kv + rows * ld, run->slots[r->src], &lda, rows, run->team);
    bvl_linear_run(&s->kv, run->kernels, kv, ld, a, lda, rows, (bvl_epilogue){.bf16 = s->bf16}, run->team);
    bvl_barrier(run->team);
    if (src->kind == BVL_TEXT_ROWS && in->attention_mask && !run->padded) {
        bvl_share(run->count, run->team.tid, run->team.nt, &begin, &end);
        for (int64_t i = begin; i < end; i++)
            keep_unmasked(kv + i * T * ld, ld, bvl_item_mask(in, run->first + i), T);
        bvl_barrier(run->team);
    }
    bvl_share(run->count * shape->heads, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t u = begin; u < end; u++) {
        const int64_t item = u / shape->heads, head = u % shape->heads;
        bvl_context *c = run->made[item];
        const float *k = kv + item * T * ld + head * shape->hd / per;
        bvl_attention_pack(
            run->kernels, c->memory + s->layer * c->words + head * (c->words / shape->heads), k,
            k + s->inner / per,
            &(bvl_attention_shape){.Tk = c->rows, .hd = shape->hd, .ldkv = ld, .bf16 = s->bf16});
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_context = {
    .name = "context",
    .params = {"num_attention_heads", NULL},
    .weights = {"kv_weight", "kv_bias", NULL},
    .build = context_build,
    .shared = context_shared,
    .run = context_run,
    .makes_context = true,
};
