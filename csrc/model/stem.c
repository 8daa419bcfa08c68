/* stem.c: from inputs to the first rows.
 *
 * embed_tokens   x[t] = word[ids[t]] (+ position[p[t]]) (+ type[type_ids[t]]), after the query tokens if any
 *                a row whose id is the feature token begins with the next row of the item's features instead
 * join_features  x[0] = class token, if any; x[t] = features[t] (+ type[type_ids[t]]): one stream of several
 *                inputs
 * query_tokens   x[i] = query[i], the same for every item
 * patch_embed    x = act(windows(picture) W^T + b) (+ position), an optional class token first
 *
 * A patch embedding has stride = kernel; a convolution stem has overlapping, padded windows.
 */
#include <string.h>

#include "../arena.h"
#include "../ops/conv.h"
#include "../ops/linear.h"
#include "ops.h"

typedef struct {
    float *word;            /* [vocab, D], NULL where half is used */
    uint16_t *half;         /* [vocab, D] bfloat16, of programs in less than float32 */
    float *position, *type; /* [max_positions, D] [types, D] or NULL */
    int64_t D;
} embed_tokens;

enum { WORD, POSITION, TYPE, ROTARY };
enum { P_FEATURE_TOKEN, P_MAX_POSITIONS }; /* the latter where there is no table of positions */

/* Positions without a table: how many there may be, and the frequencies of a rotary embedding. */
static bvl_status rotary_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (!(b->params[P_MAX_POSITIONS] >= 1 && b->params[P_MAX_POSITIONS] <= 1 << 24))
        return bvl_fail(err, BVL_INVALID, "embed_tokens: max_positions: found %g, expected 1 to 2^24",
                        b->params[P_MAX_POSITIONS]);
    p->max_positions = (int64_t)b->params[P_MAX_POSITIONS];
    if (!b->weights[ROTARY].data) return BVL_OK;
    if (bvl_expect(r->op, b, ROTARY, 1, -1, 0, 0, 0, err) != BVL_OK) return err->status;
    p->rotary_half = b->weights[ROTARY].shape[0];
    return bvl_copy_vector(&p->rotary, &p->store, &b->weights[ROTARY], err);
}

static bvl_status embed_tokens_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t D = p->slots[r->dst].cols;
    if (p->vocab || p->joins || !p->slots[r->dst].text)
        return bvl_fail(err, BVL_INVALID, "embed_tokens: expected one per program, into a slot of text rows");
    const bool table = b->weights[POSITION].data != NULL;
    if (bvl_expect(r->op, b, WORD, 2, -1, D, 0, 0, err) != BVL_OK ||
        (table && bvl_expect(r->op, b, POSITION, 2, -1, D, 0, 0, err) != BVL_OK))
        return err->status;
    if (b->weights[TYPE].data && bvl_expect(r->op, b, TYPE, 2, -1, D, 0, 0, err) != BVL_OK)
        return err->status;
    embed_tokens *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for embed_tokens");
    s->D = D;
    p->vocab = b->weights[WORD].shape[0];
    p->max_positions = table ? b->weights[POSITION].shape[0] : 0;
    p->types = b->weights[TYPE].data ? b->weights[TYPE].shape[0] : 0;
    p->feature_token = (int64_t)b->params[P_FEATURE_TOKEN];
    p->feature_cols = D;
    const bool whole = p->precision == BVL_FLOAT32 || p->precision == BVL_BFLOAT16X3;
    if ((whole ? bvl_copy_vector(&s->word, &p->store, &b->weights[WORD], err)
               : bvl_copy_bfloat16(&s->half, &p->store, &b->weights[WORD], err)) != BVL_OK ||
        (table ? bvl_copy_vector(&s->position, &p->store, &b->weights[POSITION], err)
               : rotary_build(p, r, b, err)) != BVL_OK)
        return err->status;
    return p->types ? bvl_copy_vector(&s->type, &p->store, &b->weights[TYPE], err) : BVL_OK;
}

/* The features of the placeholder at `at` of input_ids: as many rows in as there are placeholders before it.
 */
static const float *feature_row(const bvl_inputs *in, int64_t at, int64_t token, int64_t D) {
    int64_t before = 0;
    for (int64_t i = at - at % in->L; i < at; i++) before += in->input_ids[i] == token;
    return in->features + (at / in->L * in->feature_rows + before) * D;
}

static void embed_tokens_run(const bvl_record *r, const bvl_run *run) {
    const embed_tokens *s = r->state;
    const bvl_kernels *k = run->kernels;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t L = in->L, queries = bvl_slot_queries(dst, in);
    int64_t begin, end;
    bvl_share(run->count * L, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t at = run->first * L + i, row = i / L * (queries + L) + queries + i % L;
        float *x = run->slots[r->dst] + row * dst->ld;
        if (in->features && in->input_ids[at] == run->program->feature_token)
            memcpy(x, feature_row(in, at, run->program->feature_token, s->D), (size_t)s->D * sizeof(float));
        else if (s->word)
            memcpy(x, s->word + in->input_ids[at] * s->D, (size_t)s->D * sizeof(float));
        else
            bvl_widen(x, s->half + in->input_ids[at] * s->D, s->D);
        if (s->type) {
            const int64_t type = in->token_type_ids ? in->token_type_ids[at] : 0;
            k->add(x, s->type + type * s->D, s->D);
        }
        const int64_t position = in->position_ids ? in->position_ids[at] : in->past + i % L;
        if (s->position) k->add(x, s->position + position * s->D, s->D);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_embed_tokens = {
    .name = "embed_tokens",
    .params = {"feature_token", "max_positions", NULL},
    .weights = {"word", "position", "type", "rotary", NULL},
    .build = embed_tokens_build,
    .run = embed_tokens_run,
};

typedef struct {
    float *class_token, *type; /* [D] or NULL, [types, D] or NULL */
} join_features;

static bvl_status join_features_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    if (p->vocab || p->joins || p->queries || !dst->text || dst->rows)
        return bvl_fail(err, BVL_INVALID,
                        "join_features: expected one per program, into a slot of text rows");
    if (b->weights[0].data && bvl_expect(r->op, b, 0, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[1].data && bvl_expect(r->op, b, 1, 2, -1, dst->cols, 0, 0, err) != BVL_OK)
        return err->status;
    join_features *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for join_features");
    p->joins = true;
    p->joined_lead = b->weights[0].data ? 1 : 0;
    p->feature_cols = dst->cols;
    p->types = b->weights[1].data ? b->weights[1].shape[0] : 0;
    if (b->weights[0].data && bvl_copy_vector(&s->class_token, &p->store, &b->weights[0], err) != BVL_OK)
        return err->status;
    return b->weights[1].data ? bvl_copy_vector(&s->type, &p->store, &b->weights[1], err) : BVL_OK;
}

static void join_features_run(const bvl_record *r, const bvl_run *run) {
    const join_features *s = r->state;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t D = dst->cols, lead = run->program->joined_lead;
    int64_t begin, end;
    bvl_share(run->count * in->L, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t item = run->first + i / in->L, t = i % in->L;
        const float *from =
            t < lead ? s->class_token : in->features + (item * in->feature_rows + t - lead) * D;
        float *x = run->slots[r->dst] + i * dst->ld;
        memcpy(x, from, (size_t)D * sizeof(float));
        if (s->type)
            run->kernels->add(
                x, s->type + (in->token_type_ids ? in->token_type_ids[item * in->L + t] : 0) * D, D);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_join_features = {
    .name = "join_features",
    .params = {NULL},
    .weights = {"class_token", "type", NULL},
    .build = join_features_build,
    .run = join_features_run,
};

typedef struct {
    float *query; /* [queries, D] */
} query_tokens;

static bvl_status query_tokens_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    if (p->queries || bvl_expect(r->op, b, 0, 2, dst->rows, dst->cols, 0, 0, err) != BVL_OK)
        return p->queries ? bvl_fail(err, BVL_INVALID, "query_tokens: expected one per program")
                          : err->status;
    query_tokens *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for query_tokens");
    p->queries = dst->rows;
    p->queries_before_text = dst->text;
    return bvl_copy_vector(&s->query, &p->store, &b->weights[0], err);
}

static void query_tokens_run(const bvl_record *r, const bvl_run *run) {
    const query_tokens *s = r->state;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t T = bvl_slot_rows(dst, run->inputs), n = run->inputs->contexts ? run->program->queries : 0;
    int64_t begin, end;
    bvl_share(run->count * n, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        memcpy(run->slots[r->dst] + (i / n * T + i % n) * dst->ld, s->query + i % n * dst->cols,
               (size_t)dst->cols * sizeof(float));
    bvl_barrier(run->team);
}

const bvl_op bvl_op_query_tokens = {
    .name = "query_tokens",
    .params = {NULL},
    .weights = {"query", NULL},
    .build = query_tokens_build,
    .run = query_tokens_run,
};

typedef struct {
    bvl_patches patches;
    bvl_linear linear;
    float *class_token; /* [D] or NULL */
    float *position;    /* [T, D], class token first, or NULL */
    int64_t ld;         /* floats between two rows of windows */
    bvl_activation act;
} patch_embed;

enum { P_CHANNELS, P_HEIGHT, P_WIDTH, P_STRIDE, P_PAD_TOP, P_PAD_LEFT, P_OUT_HEIGHT, P_OUT_WIDTH, P_ACT };
enum { W_WEIGHT, W_BIAS, W_CLASS, W_POSITION };

static bvl_status patch_embed_check(const bvl_program *p, const bvl_record *r, const bvl_build *b,
                                    bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    const int64_t channels = (int64_t)b->params[P_CHANNELS];
    const int64_t tokens = (int64_t)(b->params[P_OUT_HEIGHT] * b->params[P_OUT_WIDTH]);
    const int64_t total = tokens + (b->weights[W_CLASS].data ? 1 : 0);
    if (p->channels || (b->weights[W_POSITION].data && b->params[P_ACT] != BVL_ACT_NONE))
        return bvl_fail(err, BVL_INVALID,
                        "patch_embed: expected one per program, an activation or positions");
    if (dst->text || dst->rows != total || total < 1)
        return bvl_fail(err, BVL_INVALID, "patch_embed: %lld rows, expected %lld", (long long)dst->rows,
                        (long long)total);
    if (bvl_expect(r->op, b, W_WEIGHT, 4, dst->cols, channels, -1, -1, err) != BVL_OK) return err->status;
    if (b->weights[W_WEIGHT].shape[2] != b->weights[W_WEIGHT].shape[3])
        return bvl_fail(err, BVL_INVALID, "patch_embed: weight: expected a square kernel");
    if (b->weights[W_BIAS].data && bvl_expect(r->op, b, W_BIAS, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[W_CLASS].data && bvl_expect(r->op, b, W_CLASS, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[W_POSITION].data) return bvl_expect(r->op, b, W_POSITION, 2, total, dst->cols, 0, 0, err);
    return BVL_OK;
}

static bvl_status patch_embed_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (patch_embed_check(p, r, b, err) != BVL_OK) return err->status;
    patch_embed *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for patch_embed");
    s->patches = (bvl_patches){
        (int64_t)b->params[P_CHANNELS],   (int64_t)b->params[P_HEIGHT],    (int64_t)b->params[P_WIDTH],
        (int64_t)b->params[P_OUT_HEIGHT], (int64_t)b->params[P_OUT_WIDTH], b->weights[W_WEIGHT].shape[2],
        (int64_t)b->params[P_STRIDE],     (int64_t)b->params[P_PAD_TOP],   (int64_t)b->params[P_PAD_LEFT]};
    s->act = (bvl_activation)b->params[P_ACT];
    p->channels = s->patches.channels;
    p->height = s->patches.height;
    p->width = s->patches.width;
    if (bvl_linear_init(&s->linear, &p->store, p->kernels, bvl_outer_precision(p, p->slots[r->dst].rows),
                        &b->weights[W_WEIGHT], &b->weights[W_BIAS], b->threads, err) != BVL_OK)
        return err->status;
    s->ld = bvl_padded(s->linear.K);
    if (b->weights[W_CLASS].data &&
        bvl_copy_vector(&s->class_token, &p->store, &b->weights[W_CLASS], err) != BVL_OK)
        return err->status;
    if (!b->weights[W_POSITION].data) return BVL_OK;
    return bvl_copy_vector(&s->position, &p->store, &b->weights[W_POSITION], err);
}

enum {
    ROWS_AT_ONCE = 512
}; /* windows of pictures taken together, so that the weights are read once for them */

static int64_t pictures_at_once(const bvl_slot *dst, int64_t count) {
    return BVL_MIN(count, BVL_MAX(1, ROWS_AT_ONCE / dst->rows));
}

static int64_t patch_embed_shared(const bvl_program *p, const bvl_record *r, int64_t count,
                                  const bvl_inputs *in) {
    const patch_embed *s = r->state;
    const bvl_slot *dst = &p->slots[r->dst];
    (void)in;
    return pictures_at_once(dst, count) * dst->rows * (s->ld + bvl_linear_operand(&s->linear));
}

/* Rows of x [pictures * T, D]: the class token in the first of each picture, positions added to all. */
static void finish_rows(const patch_embed *s, const bvl_run *run, float *x, const bvl_slot *dst,
                        int64_t pictures) {
    int64_t begin, end;
    bvl_share(pictures * dst->rows, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t t = i % dst->rows;
        if (s->class_token && t == 0)
            memcpy(x + i * dst->ld, s->class_token, (size_t)dst->cols * sizeof(float));
        if (s->position) run->kernels->add(x + i * dst->ld, s->position + t * dst->cols, dst->cols);
    }
    bvl_barrier(run->team);
}

/* The class token's row goes through the product as zeros, so that the rows of several pictures are one
 * matrix. */
static void patch_embed_run(const bvl_record *r, const bvl_run *run) {
    const patch_embed *s = r->state;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t T = dst->rows, skip = s->class_token ? 1 : 0, most = pictures_at_once(dst, run->count);
    const int64_t pixels = s->patches.channels * s->patches.height * s->patches.width;
    float *windows = run->shared, *operand = windows + most * T * s->ld;
    for (int64_t i = 0; i < run->count; i += most) {
        const int64_t pictures = BVL_MIN(most, run->count - i);
        float *x = run->slots[r->dst] + i * T * dst->ld;
        int64_t ld = s->ld;
        for (int64_t n = 0; n < pictures; n++) {
            float *rows = windows + n * T * s->ld;
            if (skip && run->team.tid == 0) memset(rows, 0, (size_t)s->linear.K * sizeof(float));
            bvl_patch_rows(rows + skip * s->ld, s->ld,
                           run->inputs->pixel_values + (run->first + i + n) * pixels, &s->patches, run->team);
        }
        bvl_barrier(run->team);
        const float *a = bvl_linear_load(&s->linear, operand, windows, &ld, pictures * T, run->team);
        bvl_linear_run(&s->linear, run->kernels, x, dst->ld, a, ld, pictures * T,
                       (bvl_epilogue){.act = s->act}, run->team);
        bvl_barrier(run->team);
        if (s->class_token || s->position) finish_rows(s, run, x, dst, pictures);
    }
}

const bvl_op bvl_op_patch_embed = {
    .name = "patch_embed",
    .params = {"channels", "height", "width", "stride", "pad_top", "pad_left", "out_height", "out_width",
               "activation", NULL},
    .weights = {"weight", "bias", "class_token", "position", NULL},
    .build = patch_embed_build,
    .shared = patch_embed_shared,
    .run = patch_embed_run,
};
