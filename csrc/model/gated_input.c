/* gated_input.c: what the tokens were is mixed in again after a layer (per-layer embeddings; Gemma 3n, 2025):
 *
 *   x = scale (x + post_norm(out(act(gate(x)) * norm(in(e)))))
 *
 * e are the rows of another slot, the same tokens' as those of x.
 */
#include "../arena.h"
#include "sublayers.h"

enum { P_NORM_EPS, P_ACT, P_INPUTS };
enum { GATE_W, IN_W, IN_NORM, OUT_W = IN_NORM + 2, POST_NORM, SCALE = POST_NORM + 2 };

typedef struct {
    bvl_sublayer sublayer;
    bvl_linear gate, in, out;
    bvl_norm in_norm;
    bvl_sublayer_norm norm; /* of what is added */
    bvl_activation act;
    float *scale;     /* [1] or NULL */
    int slot, inputs; /* the slots of x and of e */
} gated_input;

static bvl_status gated_input_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    static const bvl_array none = {0};
    const int64_t D = p->slots[r->src].cols;
    int64_t act, inputs;
    if (bvl_sublayer_expect(p, r, false, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_ACT, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_INPUTS, 0, p->slot_count - 1, &inputs, err) != BVL_OK ||
        bvl_expect(r->op, b, GATE_W, 2, -1, D, 0, 0, err) != BVL_OK)
        return err->status;
    const bvl_slot *slot = &p->slots[r->src], *e = &p->slots[inputs];
    const int64_t P = b->weights[GATE_W].shape[0];
    if (p->windowed) return bvl_fail(err, BVL_INVALID, "gated_input: found beside attention within windows");
    if (e->kind != slot->kind || e->rows != slot->rows || inputs == r->src)
        return bvl_fail(err, BVL_INVALID, "gated_input: slot %s does not have the rows of %s", e->name,
                        slot->name);
    if (bvl_expect(r->op, b, IN_W, 2, P, e->cols, 0, 0, err) != BVL_OK ||
        bvl_expect(r->op, b, OUT_W, 2, D, P, 0, 0, err) != BVL_OK)
        return err->status;
    gated_input *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for gated_input");
    s->act = (bvl_activation)act;
    s->slot = r->src;
    s->inputs = r->also = (int)inputs;
    s->sublayer.inner = s->norm.first = s->norm.posts = true;
    const struct {
        bvl_linear *linear;
        int weight;
    } products[] = {{&s->gate, GATE_W}, {&s->in, IN_W}, {&s->out, OUT_W}};
    for (int i = 0; i < 3; i++) {
        if (bvl_linear_init(products[i].linear, &p->store, p->kernels, p->precision,
                            &b->weights[products[i].weight], &none, b->threads, err) != BVL_OK)
            return err->status;
        p->words.operand = BVL_MAX(p->words.operand, bvl_linear_operand(products[i].linear));
    }
    const double eps = b->params[P_NORM_EPS];
    if (bvl_norm_build(p, r, b, IN_NORM, P, eps, true, &s->in_norm, err) != BVL_OK ||
        bvl_norm_build(p, r, b, POST_NORM, D, eps, true, &s->norm.post, err) != BVL_OK)
        return err->status;
    p->words.wide = BVL_MAX(p->words.wide, 2 * bvl_padded(P));
    p->words.narrow = BVL_MAX(p->words.narrow, bvl_padded(D));
    if (!b->weights[SCALE].data) return BVL_OK;
    if (bvl_expect(r->op, b, SCALE, 1, 1, 0, 0, 0, err) != BVL_OK) return err->status;
    return bvl_copy_vector(&s->scale, &p->store, &b->weights[SCALE], err);
}

static void add(const void *state, const bvl_run *run, const bvl_place *at) {
    const gated_input *s = state;
    const bvl_kernels *k = run->kernels;
    const int64_t P = s->gate.N, ldp = bvl_padded(P), D = s->out.N, lde = run->program->slots[s->inputs].ld;
    float *gates = at->wide, *inputs = gates + at->rows * ldp;
    const float *e = run->slots[s->inputs] + (at->x - run->slots[s->slot]) / at->ldx * lde;
    int64_t ldx = at->ldx, ld = lde, begin, end;
    const float *a = bvl_linear_load(&s->gate, at->z, at->x, &ldx, at->rows, run->team);
    bvl_linear_run(&s->gate, k, gates, ldp, a, ldx, at->rows, (bvl_epilogue){0}, run->team);
    bvl_barrier(run->team);
    a = bvl_linear_load(&s->in, at->z, e, &ld, at->rows, run->team);
    bvl_linear_run(&s->in, k, inputs, ldp, a, ld, at->rows, (bvl_epilogue){0}, run->team);
    bvl_barrier(run->team);
    bvl_norm_run(&s->in_norm, k, inputs, ldp, inputs, ldp, at->rows, run->team);
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) k->gate(gates + i * ldp, inputs + i * ldp, s->act, P);
    bvl_barrier(run->team);
    bvl_sublayer_add(&s->norm, run, &s->out, at, at->z, gates, ldp, false, at->h);
    for (int64_t i = begin; i < end && s->scale; i++) k->scale(at->x + i * at->ldx, s->scale[0], D);
    bvl_barrier(run->team);
}

const bvl_op bvl_op_gated_input = {
    .name = "gated_input",
    .params = {"layer_norm_eps", "activation", "inputs", NULL},
    .weights = {"gate_weight", "in_weight", "in_norm_weight", "in_norm_bias", "out_weight",
                "post_norm_weight", "post_norm_bias", "scale", NULL},
    .build = gated_input_build,
    .steps = &(const bvl_steps){.add = add},
};
