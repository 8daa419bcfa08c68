/* stem.c: from inputs to the first rows.
 *
 * embed_tokens   x[t] = word[ids[t]] (+ position[p[t]]) (+ type[type_ids[t]]), after the query tokens if any
 *                a row whose id is the feature token begins with the next row of the item's features instead
 *
 * add_features   x[t] += the next D numbers of the features of such a row, which this asks for: what a text
 *                is given after one of its first layers (DeepStack; Meng et al., 2024)
 *
 * join_features  x[0] = class token, if any; x[t] = features[t] (+ type[type_ids[t]]): one stream of several
 *                inputs
 *
 * query_tokens   x[i] = query[i], the same for every item
 */
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "ops.h"

typedef struct {
    float *word;            /* [vocab, D], NULL where half is used */
    uint16_t *half;         /* [vocab, D] bfloat16, of programs in less than float32 */
    float *position, *type; /* [max_positions, D] [types, D] or NULL */
    int64_t D;
} embed_tokens;

enum { WORD, POSITION, TYPE, ROTARY };
enum { P_FEATURE_TOKEN, P_MAX_POSITIONS, P_FLAT }; /* the second where there is no table of positions */

/* Positions without a table: how many there may be, and the frequencies of a rotary embedding, or of two; of
 * several axes [axes, half], and then a token has a position along each. */
static bvl_status rotary_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    if (!(b->params[P_MAX_POSITIONS] >= 1 && b->params[P_MAX_POSITIONS] <= 1 << 24))
        return bvl_fail(err, BVL_INVALID, "embed_tokens: max_positions: found %g, expected 1 to 2^24",
                        b->params[P_MAX_POSITIONS]);
    for (int i = 0; i < BVL_MAX_TURNS && b->weights[ROTARY + i].data; i++) {
        bvl_turns *turns = &p->turns[i];
        if (turns->half)
            return bvl_fail(err, BVL_INVALID,
                            "embed_tokens: rotary: given, and another stem of the program has one");
        const bvl_array *given = &b->weights[ROTARY + i];
        const int64_t axes = given->rank == 2 ? given->shape[0] : 1;
        if (axes > BVL_MAX_AXES || (i && axes != p->axes))
            return bvl_fail(err, BVL_INVALID, "embed_tokens: %s: found %lld axes, expected %s%lld",
                            r->op->weights[ROTARY + i], (long long)axes, i ? "" : "1 to ",
                            (long long)(i ? p->axes : BVL_MAX_AXES));
        if (bvl_expect(r->op, b, ROTARY + i, given->rank == 2 ? 2 : 1, -1, -1, 0, 0, err) != BVL_OK ||
            bvl_copy_vector(&turns->frequencies, &p->store, given, err) != BVL_OK)
            return err->status;
        p->axes = axes;
        turns->half = given->shape[given->rank - 1];
        turns->kind = BVL_TEXT_ROWS;
    }
    return BVL_OK;
}

/* A text of at most so many positions; features of D numbers in place of some tokens, or 0. */
static void declare_text(bvl_declared *declared, const bvl_build *b, int64_t positions, int64_t D) {
    const bvl_declared ids = {.rank = 2, .sizes = {{BVL_ITEMS, 0}, {BVL_TOKENS, 0}}, .integers = true};
    declared[BVL_INPUT_IDS] = declared[BVL_POSITION_IDS] = ids;
    declared[BVL_INPUT_IDS].name = "input_ids";
    declared[BVL_INPUT_IDS].required = true;
    declared[BVL_INPUT_IDS].below = b->weights[WORD].shape[0];
    declared[BVL_POSITION_IDS].name = "position_ids";
    declared[BVL_POSITION_IDS].below = positions;
    if (b->weights[ROTARY].rank == 2) {
        declared[BVL_POSITION_IDS].rank = 3;
        declared[BVL_POSITION_IDS].sizes[2] = (bvl_size){BVL_EXACTLY, b->weights[ROTARY].shape[0]};
    }
    bvl_declare_tokens(declared, true, b->weights[TYPE].data ? b->weights[TYPE].shape[0] : 0);
    if (!D) return;
    const bvl_size rows = {BVL_ROWS, 0}, columns = {BVL_EXACTLY, D};
    bvl_declared *features = &declared[BVL_FEATURES];
    *features = (bvl_declared){.name = "features", .rank = 3, .sizes = {{BVL_ITEMS, 0}, rows, columns}};
    if (b->params[P_FLAT] != 0)
        *features = (bvl_declared){.name = "features", .rank = 2, .sizes = {rows, columns}};
}

static bvl_status embed_tokens_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const int64_t D = p->slots[r->dst].cols;
    if (p->declared[BVL_ATTENTION_MASK].rank || p->slots[r->dst].kind != BVL_TEXT_ROWS)
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
    p->feature_token = (int64_t)b->params[P_FEATURE_TOKEN];
    p->flat_features = b->params[P_FLAT] != 0;
    p->feature_cols = D;
    if (table && (b->weights[ROTARY].data || b->weights[ROTARY + 1].data))
        return bvl_fail(err, BVL_INVALID, "embed_tokens: rotary: given beside a table of positions");
    declare_text(p->declared, b, table ? b->weights[POSITION].shape[0] : (int64_t)b->params[P_MAX_POSITIONS],
                 p->feature_token >= 0 ? D : 0);
    const bool whole = p->precision == BVL_FLOAT32 || p->precision == BVL_BFLOAT16X3;
    if ((whole ? bvl_copy_vector(&s->word, &p->store, &b->weights[WORD], err)
               : bvl_copy_bfloat16(&s->half, &p->store, &b->weights[WORD], err)) != BVL_OK ||
        (table ? bvl_copy_vector(&s->position, &p->store, &b->weights[POSITION], err)
               : rotary_build(p, r, b, err)) != BVL_OK)
        return err->status;
    return b->weights[TYPE].data ? bvl_copy_vector(&s->type, &p->store, &b->weights[TYPE], err) : BVL_OK;
}

/* The features of the placeholder at `at` of input_ids: as many rows in as there are placeholders before it;
 * NULL where there is none, or no features. */
static const float *feature_row(const bvl_program *p, const bvl_inputs *in, int64_t at) {
    int64_t before = 0;
    if (!in->features || in->input_ids[at] != p->feature_token) return NULL;
    for (int64_t i = at - at % in->L; i < at; i++) before += in->input_ids[i] == p->feature_token;
    const int64_t item = at / in->L;
    before += in->features_before ? in->features_before[item] : item * in->feature_rows;
    return in->features + before * p->feature_cols;
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
        const float *features = feature_row(run->program, in, at);
        if (features)
            memcpy(x, features, (size_t)s->D * sizeof(float));
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
    .params = {"feature_token", "max_positions", "flat_features", NULL},
    .weights = {"word", "position", "type", "rotary", "rotary_2", NULL},
    .build = embed_tokens_build,
    .run = embed_tokens_run,
};

typedef struct {
    int64_t column; /* of the features, where what is added begins */
} add_features;

static bvl_status add_features_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    bvl_declared *features = &p->declared[BVL_FEATURES];
    const bvl_slot *slot = &p->slots[r->dst];
    (void)b;
    if (r->src != r->dst || slot->kind != BVL_TEXT_ROWS || slot->rows || p->feature_token < 0 ||
        !p->declared[BVL_INPUT_IDS].rank)
        return bvl_fail(err, BVL_INVALID,
                        "add_features: expected the rows of a text alone that reads features");
    add_features *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for add_features");
    s->column = p->feature_cols;
    p->feature_cols += slot->cols;
    features->sizes[features->rank - 1].count = p->feature_cols;
    return BVL_OK;
}

static void add_features_run(const bvl_record *r, const bvl_run *run) {
    const add_features *s = r->state;
    const bvl_slot *slot = &run->program->slots[r->dst];
    int64_t begin, end;
    bvl_share(run->count * run->inputs->L, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const float *features = feature_row(run->program, run->inputs, run->first * run->inputs->L + i);
        if (features) run->kernels->add(run->slots[r->dst] + i * slot->ld, features + s->column, slot->cols);
    }
    bvl_barrier(run->team);
}

const bvl_op bvl_op_add_features = {
    .name = "add_features",
    .params = {NULL},
    .weights = {NULL},
    .build = add_features_build,
    .run = add_features_run,
};

typedef struct {
    float *class_token, *type; /* [D] or NULL, [types, D] or NULL */
    int64_t lead;              /* rows before the features: a class token or none */
} join_features;

static bvl_status join_features_build(bvl_program *p, bvl_record *r, const bvl_build *b, bvl_error *err) {
    const bvl_slot *dst = &p->slots[r->dst];
    if (p->declared[BVL_ATTENTION_MASK].rank || p->queries || dst->kind != BVL_TEXT_ROWS || dst->rows)
        return bvl_fail(err, BVL_INVALID,
                        "join_features: expected one per program, into a slot of text rows");
    if (b->weights[0].data && bvl_expect(r->op, b, 0, 1, dst->cols, 0, 0, 0, err) != BVL_OK)
        return err->status;
    if (b->weights[1].data && bvl_expect(r->op, b, 1, 2, -1, dst->cols, 0, 0, err) != BVL_OK)
        return err->status;
    join_features *s = r->state = bvl_alloc(sizeof *s);
    if (!s) return bvl_fail(err, BVL_NO_MEMORY, "no memory for join_features");
    s->lead = b->weights[0].data ? 1 : 0;
    p->uncached = true;
    p->declared[BVL_FEATURES] =
        (bvl_declared){.name = "features",
                       .rank = 3,
                       .sizes = {{BVL_ITEMS, 0}, {BVL_TOKENS_AFTER, s->lead}, {BVL_EXACTLY, dst->cols}},
                       .required = true};
    bvl_declare_tokens(p->declared, false, b->weights[1].data ? b->weights[1].shape[0] : 0);
    if (b->weights[0].data && bvl_copy_vector(&s->class_token, &p->store, &b->weights[0], err) != BVL_OK)
        return err->status;
    return b->weights[1].data ? bvl_copy_vector(&s->type, &p->store, &b->weights[1], err) : BVL_OK;
}

static void join_features_run(const bvl_record *r, const bvl_run *run) {
    const join_features *s = r->state;
    const bvl_inputs *in = run->inputs;
    const bvl_slot *dst = &run->program->slots[r->dst];
    const int64_t D = dst->cols, lead = s->lead;
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
    p->queries_before_text = dst->kind == BVL_TEXT_ROWS;
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
