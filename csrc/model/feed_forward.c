/* feed_forward.c: x + fc2(act(fc1(norm(x)))); gated: act(g) * u in place of act(...), where fc1's rows are g,
 * then u.
 */
#include "../arena.h"
#include "sublayers.h"

enum { P_PART = P_OWN, P_ACT, P_GATED };
enum {
    FC1_W,
    FC1_B,
    FC2_W,
    FC2_B,
    NORM_W,
    NORM_B,
    POST_NORM,
    FC1_BOUNDS = POST_NORM + 2,
    FC2_BOUNDS = FC1_BOUNDS + 2
}; /* from a feed-forward's first on */

typedef struct {
    bvl_sublayer sublayer;
    bvl_feed_forward ffn;
} feed_forward;

/* The products of f->parts parts, fc1 and fc2 of each side by side; packed files keep this order. `apart`: of
 * one part, whose gates are a product of their own. */
static bvl_status parts_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, bool apart,
                              bvl_precision precision, bvl_feed_forward *f, bvl_error *err) {
    const bvl_array *fc1 = &b->weights[at + FC1_W], *fc2 = &b->weights[at + FC2_W];
    const int64_t D = fc1->shape[1], rows = f->gated ? 2 : 1, halves[] = {f->intermediate, f->intermediate};
    if (apart &&
        bvl_apart_build(p, r, b, at + FC1_W, halves, 2, precision, &f->fc1[0], &f->fc1[1], err) != BVL_OK)
        return err->status;
    for (int i = 0; i < f->parts; i++) {
        const int64_t first = i * f->width, width = BVL_MIN(f->width, f->intermediate - first);
        bvl_array bias1 = fc1[1], bias2 = {0};
        if (bias1.data) bias1.data += first, bias1.shape[0] = rows * width;
        if (i == 0) bias2 = fc2[1];
        if ((!apart &&
             bvl_linear_init_strided(&f->fc1[i], &p->store, p->kernels, precision, fc1->data + first * D, D,
                                     rows * width, D, &bias1, b->threads, err) != BVL_OK) ||
            bvl_linear_init_strided(&f->fc2[i], &p->store, p->kernels, precision, fc2->data + first,
                                    f->intermediate, D, width, &bias2, b->threads, err) != BVL_OK)
            return err->status;
    }
    return BVL_OK;
}

bvl_status bvl_feed_forward_build(bvl_program *p, const bvl_record *r, const bvl_build *b,
                                  const bvl_feed_forward_settings *settings, bvl_feed_forward *f,
                                  bvl_error *err) {
    const int64_t D = p->slots[r->src].cols, most = p->kernels->inner_columns;
    const bvl_precision precision = settings->precision;
    const int at = settings->at;
    if (!(settings->activation >= 0 && settings->activation < BVL_ACT_COUNT))
        return bvl_fail(err, BVL_INVALID, "%s: activation: found %g, expected 0 to %d", r->op->name,
                        settings->activation, BVL_ACT_COUNT - 1);
    f->gated = settings->gated;
    f->act = (bvl_activation)settings->activation;
    if (bvl_affine_expect(r, b, at + FC1_W, -1, D, err) != BVL_OK) return err->status;
    const int64_t rows = b->weights[at + FC1_W].shape[0];
    f->intermediate = f->gated ? rows / 2 : rows;
    if (f->gated && rows % 2)
        return bvl_fail(err, BVL_INVALID, "%s: %s: %lld rows, expected as many of gates as of what they gate",
                        r->op->name, r->op->weights[at + FC1_W], (long long)rows);
    if (bvl_affine_expect(r, b, at + FC2_W, D, f->intermediate, err) != BVL_OK) return err->status;
    const bool part = most && settings->pre_norm && !f->norm.posts && !f->gated && !settings->clipped &&
                      precision != BVL_FLOAT32 &&
                      precision != BVL_INT8; /* whose operand has one scale for all inner columns */
    f->parts = part ? (int)BVL_MIN((f->intermediate + most - 1) / most, BVL_FFN_PARTS) : 1;
    f->width = f->intermediate;
    if (f->parts > 1) f->width = bvl_round_up((f->intermediate + f->parts - 1) / f->parts, p->kernels->nr);
    f->parts = (int)((f->intermediate + f->width - 1) / f->width);
    if (parts_build(p, r, b, at, settings->apart, precision, f, err) != BVL_OK) return err->status;
    f->direct = !f->gated && !settings->clipped && precision == p->precision &&
                bvl_writes_operand(p, &f->fc2[0]) && bvl_writes_operand(p, &f->fc2[f->parts - 1]);
    f->norm.first = settings->pre_norm;
    return bvl_norm_build(p, r, b, at + NORM_W, D, settings->eps, settings->rms, &f->norm.norm, err);
}

/* Words between rows of the inner activations of so many parts. */
static int64_t inner_ld(const bvl_feed_forward *f, int parts) {
    return bvl_words_between((f->gated ? 2 : 1) * BVL_MIN(parts * f->width, f->intermediate), f->direct);
}

static bvl_status feed_forward_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_feed_forward_settings settings = {
        .precision = p->precision,
        .activation = b->params[P_ACT],
        .eps = b->params[P_EPS],
        .gated = b->params[P_GATED] != 0,
        .rms = b->params[P_RMS] != 0,
        .pre_norm = b->params[P_PRE_NORM] != 0,
        .clipped = b->weights[FC1_BOUNDS].data || b->weights[FC2_BOUNDS].data,
        .apart = b->params[P_GATED] != 0 && bvl_bounds_apart(b, FC1_BOUNDS, 2)};
    int64_t part;
    if (bvl_sublayer_expect(p, r, true, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_PART, 0, BVL_TOKEN_ROWS, &part, err) != BVL_OK)
        return err->status;
    feed_forward *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    bvl_feed_forward *f = &s->ffn;
    f->norm.first = settings.pre_norm;
    if (bvl_post_norm_build(p, r, b, POST_NORM, &f->norm, err) != BVL_OK) return err->status;
    if (bvl_feed_forward_build(p, r, b, &settings, f, err) != BVL_OK) return err->status;
    if (bvl_bounds_build(p, r, b, FC1_BOUNDS, f->norm.first, &f->fc1[0], err) != BVL_OK ||
        bvl_bounds_build(p, r, b, FC2_BOUNDS, true, &f->fc2[0], err) != BVL_OK)
        return err->status;
    s->sublayer = (bvl_sublayer){.part = (bvl_part)part, .inner = true};
    bvl_sublayer_words(p, &f->norm, &f->fc1[0], &f->fc2[0]);
    p->words.wide = BVL_MAX(p->words.wide, inner_ld(f, f->parts));
    p->words.operand = BVL_MAX(p->words.operand, f->parts * bvl_linear_operand(&f->fc2[0]));
    return BVL_OK;
}

static int64_t feed_forward_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    (void)p, (void)in;
    return bvl_norm_local(&((const feed_forward *)r->state)->ffn.norm.norm);
}

/* wide[rows, intermediate] = act(the gates) * what they gate. */
static void open_gates(const bvl_feed_forward *f, const bvl_run *run, const bvl_place *at, int64_t ldm) {
    int64_t begin, end;
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        run->kernels->gate(at->wide + i * ldm, at->wide + i * ldm + f->intermediate, f->act, f->intermediate);
    bvl_barrier(run->team);
}

/* A worker alone goes part by part, whose rows stay in its cache; a team meets once for all parts. Gates have
 * one part. */
static void add(const void *state, const bvl_run *run, const bvl_place *at) {
    const bvl_feed_forward *f = &((const feed_forward *)state)->ffn;
    const int step = run->team.nt == 1 ? 1 : f->parts;
    const int64_t ldm = inner_ld(f, step), words = f->width / (f->direct ? 2 : 1);
    const int64_t operand = at->rows * bvl_linear_operand(&f->fc2[0]);
    const bvl_epilogue inner = {.act = f->gated ? BVL_ACT_NONE : f->act, .bf16 = f->direct};
    int64_t ld = 0;
    const float *a = f->gated ? NULL : bvl_sublayer_begin(&f->norm, run, &f->fc1[0], at, &ld);
    for (int first = 0; first < f->parts; first += step) {
        for (int i = 0; i < step && !f->gated; i++)
            bvl_linear_run(&f->fc1[first + i], run->kernels, at->wide + i * words, ldm, a, ld, at->rows,
                           inner, run->team);
        if (f->gated) {
            bvl_sublayer_project(&f->norm, run, &f->fc1[0], at, at->wide, ldm, inner);
            open_gates(f, run, at, ldm);
        } else {
            bvl_barrier(run->team);
        }
        for (int i = 0; i < step; i++)
            bvl_sublayer_add(&f->norm, run, &f->fc2[first + i], at, at->z + i * operand, at->wide + i * words,
                             ldm, f->direct, at->h);
    }
    bvl_sublayer_end(&f->norm, run, at);
}

const bvl_op bvl_op_feed_forward = {
    .name = "feed_forward",
    .params = {"layer_norm_eps", "rms_norm", "pre_norm", "rows", "activation", "gated", NULL},
    .weights = {"fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "norm_weight", "norm_bias",
                "post_norm_weight", "post_norm_bias", "fc1_reads", "fc1_gives", "fc2_reads", "fc2_gives",
                NULL},
    .build = feed_forward_build,
    .local = feed_forward_local,
    .steps = &(const bvl_steps){.add = add},
    .row_wise = true,
};
