/* light_conv.c: the convolution of a conformer (Gulati et al., 2020), which looks back along the rows of an
 * item:
 *
 *   x + end(act(norm2(sum over j of w[j] * g[t - k + 1 + j])))      g = a + a tanh(b)      [a b] =
 * start(norm(x))
 *
 * a + a tanh(b) is the gated linear unit 2 a sigmoid(2 b).
 */
#include <string.h>

#include "../arena.h"
#include "sublayers.h"

enum { P_ACT = P_OWN };
enum {
    START_W,
    END_W = 2,
    NORM_W = 4,
    CONV_W = 6,
    CONV_NORM,
    START_BOUNDS = CONV_NORM + 2,
    END_BOUNDS = START_BOUNDS + 2
};

typedef struct {
    bvl_sublayer sublayer;
    bvl_linear start, end;
    bvl_sublayer_norm norm;
    bvl_norm conv_norm;
    float *conv; /* [kernel, kernel, D], all but one column zeros; then zeros [D] */
    int64_t kernel;
    bvl_activation act;
} light_conv;

/* The weights [kernel, D] as those of a convolution of pictures one column wide. */
static bvl_status conv_build(bvl_program *p, const bvl_record *r, const bvl_build *b, light_conv *s,
                             bvl_error *err) {
    const int64_t D = p->slots[r->src].cols;
    if (bvl_expect(r->op, b, CONV_W, 2, -1, D, 0, 0, err) != BVL_OK) return err->status;
    const int64_t k = s->kernel = b->weights[CONV_W].shape[0];
    if (k > 64)
        return bvl_fail(err, BVL_INVALID, "%s: conv_weight: found %lld rows, expected at most 64",
                        r->op->name, (long long)k);
    void *memory;
    bool filled;
    if (bvl_store_take(&p->store, (size_t)((k * k + 1) * D) * sizeof(float), &memory, &filled, err) != BVL_OK)
        return err->status;
    s->conv = memory;
    if (filled) return BVL_OK;
    memset(s->conv, 0, (size_t)((k * k + 1) * D) * sizeof(float));
    for (int64_t i = 0; i < k; i++)
        memcpy(s->conv + (i * k + k / 2) * D, b->weights[CONV_W].data + i * D, (size_t)D * sizeof(float));
    return BVL_OK;
}

static bvl_status light_conv_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t D = p->slots[r->src].cols;
    int64_t act;
    if (bvl_sublayer_expect(p, r, false, err) != BVL_OK ||
        bvl_expect_whole(r->op, b, P_ACT, 0, BVL_ACT_COUNT - 1, &act, err) != BVL_OK)
        return err->status;
    if (p->windowed)
        return bvl_fail(err, BVL_INVALID, "%s: found beside attention within windows", r->op->name);
    light_conv *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %s", r->op->name);
    s->act = (bvl_activation)act;
    const double eps = b->params[P_EPS];
    const bool rms = b->params[P_RMS] != 0;
    if (bvl_affine_build(p, r, b, START_W, 2 * D, D, p->precision, &s->start, err) != BVL_OK ||
        bvl_affine_build(p, r, b, END_W, D, D, p->precision, &s->end, err) != BVL_OK ||
        bvl_sublayer_norm_build(p, r, b, NORM_W, &s->norm, err) != BVL_OK ||
        bvl_norm_build(p, r, b, CONV_NORM, D, eps, rms, &s->conv_norm, err) != BVL_OK ||
        bvl_bounds_build(p, r, b, START_BOUNDS, s->norm.first, &s->start, err) != BVL_OK ||
        bvl_bounds_build(p, r, b, END_BOUNDS, true, &s->end, err) != BVL_OK ||
        conv_build(p, r, b, s, err) != BVL_OK)
        return err->status;
    s->sublayer = (bvl_sublayer){.ldq = bvl_padded(2 * D), .inner = s->end.low != NULL};
    bvl_sublayer_words(p, &s->norm, &s->start, &s->end);
    p->words.narrow = BVL_MAX(p->words.narrow, bvl_padded(D));
    p->words.wide = BVL_MAX(p->words.wide, s->sublayer.ldq);
    return BVL_OK;
}

static int64_t light_conv_local(const bvl_program *p, const bvl_record *r, const bvl_inputs *in) {
    (void)p, (void)in;
    return bvl_norm_local(&((const light_conv *)r->state)->norm.norm);
}

/* g in place of b. */
static void project(const void *state, const bvl_run *run, const bvl_place *at) {
    const light_conv *s = state;
    const int64_t ld = s->sublayer.ldq, D = s->end.N;
    int64_t begin, end;
    bvl_sublayer_project(&s->norm, run, &s->start, at, at->qkv, ld, (bvl_epilogue){0});
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        float *a = at->qkv + i * ld;
        run->kernels->gate(a + D, a, BVL_ACT_TANH, D);
        run->kernels->add(a + D, a, D);
    }
    bvl_barrier(run->team);
}

static void attend(const void *state, const bvl_run *run, int slot, const bvl_place *at, int64_t first,
                   int64_t count, int64_t T) {
    const light_conv *s = state;
    const bvl_slot *held = &run->program->slots[slot];
    const int64_t ld = s->sublayer.ldq, D = s->end.N, k = s->kernel;
    int64_t begin, end;
    (void)first, (void)T;
    for (int64_t i = 0; i < count; i++) {
        const int64_t before = bvl_rows_before(run, held, i), rows = bvl_item_rows(run, held, i);
        const bvl_conv_shape shape = {.channels = D,
                                      .height = rows,
                                      .width = 1,
                                      .out_height = rows,
                                      .out_width = 1,
                                      .kernel = k,
                                      .stride = 1,
                                      .pad_top = k - 1,
                                      .pad_left = k / 2,
                                      .ld_in = ld,
                                      .ld_out = at->ldh};
        bvl_share(rows, run->team.tid, run->team.nt, &begin, &end);
        run->kernels->depthwise(at->h + before * at->ldh, at->qkv + before * ld + D, s->conv,
                                s->conv + k * k * D, BVL_ACT_NONE, &shape, begin, end);
    }
    bvl_barrier(run->team);
    bvl_norm_run(&s->conv_norm, run->kernels, at->h, at->ldh, at->h, at->ldh, at->rows, run->team);
    bvl_share(at->rows, run->team.tid, run->team.nt, &begin, &end); /* the rows that this worker normed */
    for (int64_t i = begin; i < end; i++)
        run->kernels->activate(at->h + i * at->ldh, at->h + i * at->ldh, NULL, s->act, D);
    bvl_barrier(run->team);
}

static void add(const void *state, const bvl_run *run, const bvl_place *at) {
    const light_conv *s = state;
    bvl_sublayer_add(&s->norm, run, &s->end, at, at->z, at->h, at->ldh, false, at->wide);
    bvl_sublayer_end(&s->norm, run, at);
}

const bvl_op bvl_op_light_conv = {
    .name = "light_conv",
    .params = {"layer_norm_eps", "rms_norm", "pre_norm", "activation", NULL},
    .weights = {"start_weight", "start_bias", "end_weight", "end_bias", "norm_weight", "norm_bias",
                "conv_weight", "conv_norm_weight", "conv_norm_bias", "start_reads", "start_gives",
                "end_reads", "end_gives", NULL},
    .build = light_conv_build,
    .local = light_conv_local,
    .steps = &(const bvl_steps){project, attend, add},
};
