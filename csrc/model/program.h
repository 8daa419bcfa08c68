/* program.h: a model as a list of records over named slots; what one operation is.
 *
 * A program is built once (bvl_program_add validates shapes, copies and packs weights), then immutable:
 * any number of threads may run it at the same time. A slot is a matrix per item, `cols` floats a row; how
 * many rows an item has is a matter of the slot's kind. A micro-batch holds the rows of its items one after
 * the other, without padding between pictures of several sizes.
 */
#ifndef BVL_PROGRAM_H
#define BVL_PROGRAM_H

#include "../kernels/kernels.h"
#include "../parallel.h"
#include "../store.h"
#include "inputs.h"
#include "plan.h"

enum { BVL_MAX_SLOTS = 32, BVL_MAX_RECORDS = 512, BVL_MAX_PARAMS = 16, BVL_MAX_WEIGHTS = 28 };

/* What the rows of an item are; the names are exported to Python as _C.ROW_KINDS. */
typedef enum {
    BVL_FIXED_ROWS = 0, /* `rows` in every call */
    BVL_TEXT_ROWS,   /* L, the padded text length of the call, after `rows` learned queries, which are there
                      * when the call gives contexts for them to attend to */
    BVL_PATCH_ROWS,  /* the patches of its picture, after `rows` class tokens */
    BVL_POOLED_ROWS, /* one for each square of `rows` x `rows` patches of its picture */
    BVL_ROW_KINDS
} bvl_row_kind;

typedef struct {
    char name[48];
    int64_t rows, cols;
    bvl_row_kind kind;
    int64_t ld; /* floats between two rows: cols padded so that rows spread over the cache's sets */
} bvl_slot;

struct bvl_op;
typedef struct {
    const struct bvl_op *op;
    int src, dst, also; /* slots; `also`: another one that is read, or -1 */
    void *state;        /* the operation's own struct */
} bvl_record;

/* Words of scratch for each row: normed rows or attention's output; q k v or a feed-forward's inner rows;
 * operand rows. */
typedef struct {
    int64_t narrow, wide, operand;
} bvl_row_words;

/* Angles of a row: a token's positions times frequencies; those of pictures their stem fills in. */
enum { BVL_MAX_TURNS = 2, BVL_MAX_AXES = 4 };
typedef struct {
    float *frequencies; /* [axes of the program, half], or NULL */
    int64_t half;
    bvl_row_kind kind; /* of the rows */
} bvl_turns;

typedef struct bvl_program {
    const bvl_kernels *kernels;
    bvl_precision precision; /* of the blocks of a transformer */
    bvl_slot slots[BVL_MAX_SLOTS];
    int slot_count;
    bvl_record *records;
    int record_count, record_capacity;
    bvl_declared declared[BVL_INPUT_COUNT]; /* what a call gives it */
    int64_t feature_token;                  /* the id that features stand in for, or -1 */
    int64_t frames_per_row;                 /* of a sound, or 0 */
    bool flat_features;                     /* those of all items stand one after the other */
    bool windowed;                          /* some sub-layer attends within windows */
    bvl_row_words words;                    /* scratch of sub-layers for each row */
    bvl_turns turns[BVL_MAX_TURNS];         /* by which queries and keys may be turned */
    int64_t axes;                           /* along which a token has positions: one, or more */
    int64_t feature_cols;                   /* of features: those of a row, and those added later */
    int64_t queries;                        /* learned query tokens, or 0 */
    bool queries_before_text;               /* they are the first rows of a text slot */
    bvl_context_shape takes, makes; /* contexts its blocks attend to, and those it gives other programs */
    int context_slot;               /* whose rows those are */
    bool uncached;                  /* some rows of tokens have no layer of the cache */
    int64_t cached_layers, cached_words[BVL_MAX_RECORDS]; /* causal blocks, and words a token in each */
    bvl_store store;                                      /* all weights */
    bool sealed;    /* set by the first run, or a record that failed: nothing is added afterwards */
    float *scratch; /* of the last call, kept for the next; swapped atomically */
} bvl_program;

/* The micro-batch a team is working on: items [first, first + count) of the call. */
typedef struct {
    const bvl_program *program;
    const bvl_kernels *kernels;
    const bvl_inputs *inputs;
    bvl_team team;
    int64_t first, count;
    float *slots[BVL_MAX_SLOTS]; /* [count * rows, ld] */
    const float *key_bias;       /* [count, queries + past + L] 0 or -inf from attention_mask, or NULL */
    float *turns[BVL_MAX_TURNS]; /* [rows of tokens or patches, 2 * half] cosines, then sines */
    float *shared;               /* scratch of the team */
    float *local;                /* scratch of this worker */
    /* NULL, or the pooling that takes one row of each item: from the last block to it only that row is
     * computed, and it lies in row 0 of its item */
    const bvl_record *pool;
    bvl_context *const *made; /* [count] contexts to fill, or NULL */
    bool padded;              /* with padding */
    bvl_plan *plan;           /* NULL, or what is told of each phase instead of doing it */
} bvl_run;

typedef struct {
    const bvl_array *weights; /* in the order of op->weights; data NULL when not given */
    const double *params;     /* in the order of op->params */
    int threads;              /* for packing */
} bvl_build;

/* Rows of x, and their scratch. */
typedef struct {
    float *x, *h, *wide, *z;
    float *qkv; /* of these rows; in a strip it lies apart from wide, which each strip uses anew */
    int64_t ldx, ldh, rows;
} bvl_place;

/* What a sub-layer of a transformer does; project and attend are NULL where `add` is all. */
typedef struct {
    void (*project)(const void *state, const bvl_run *run, const bvl_place *at); /* row by row */
    /* h from what was projected, across the rows of each of `count` items, which are from `first` of the call
     * on (windows: from `first` of its item's); T rows each, or the one that run->pool takes */
    void (*attend)(const void *state, const bvl_run *run, int slot, const bvl_place *at, int64_t first,
                   int64_t count, int64_t T);
    void (*add)(const void *state, const bvl_run *run, const bvl_place *at); /* row by row */
} bvl_steps;

typedef struct bvl_op {
    const char *name;
    const char *params[BVL_MAX_PARAMS + 1];   /* all are required */
    const char *weights[BVL_MAX_WEIGHTS + 1]; /* which may be absent is the build function's matter */
    /* Checks, copies, packs into the program's store; record->state is freed with the program. */
    bvl_status (*build)(bvl_program *program, bvl_record *record, const bvl_build *build, bvl_error *err);
    /* Floats of scratch for `count` items of a call: shared by the team, and per worker. */
    int64_t (*shared)(const bvl_program *program, const bvl_record *record, int64_t count,
                      const bvl_inputs *inputs);
    int64_t (*local)(const bvl_program *program, const bvl_record *record, const bvl_inputs *inputs);
    /* One worker's share, with the barriers inside; ends with a barrier if others read dst. Sub-layers, whose
     * state begins with a bvl_sublayer (sublayers.h), have steps instead. */
    void (*run)(const bvl_record *record, const bvl_run *run);
    const bvl_steps *steps;
    /* What pruning asks: run knows run->pool; and row i of dst comes from row i of src alone. */
    bool prunes, row_wise;
    /* Its result is a layer of the call's contexts, not dst. */
    bool makes_context;
    /* The row of src that is all a pooling takes of an item, -1 when it takes more; NULL: no pooling. */
    int64_t (*row)(const bvl_record *record, const bvl_run *run, int64_t item);
} bvl_op;

/* All operations, NULL at the end; their names and fields are exported to Python. */
extern const bvl_op *const bvl_ops[];
const bvl_op *bvl_find_op(const char *name);

bvl_program *bvl_program_new(const bvl_kernels *kernels, bvl_precision precision);
void bvl_program_free(bvl_program *program);
/* Index of a new slot, or -1 with err filled. */
int bvl_program_slot(bvl_program *program, const char *name, int64_t rows, int64_t cols, bvl_row_kind kind,
                     bvl_error *err);
int bvl_program_find_slot(const bvl_program *program, const char *name);
bvl_status bvl_program_add(bvl_program *program, const bvl_op *op, int src, int dst, const bvl_build *build,
                           bvl_error *err);

/* Called now and then by the calling thread; true stops the run. */
typedef bool (*bvl_poll)(void *context);

typedef struct {
    float *outputs[BVL_MAX_SLOTS];  /* [B, rows, cols] per wanted slot, NULL where not wanted */
    float *states[BVL_MAX_RECORDS]; /* the same of a record's dst as that record leaves it */
    bool any_state;
    bvl_context **contexts; /* [B] to be filled, of program->makes and bvl_context_rows; or NULL */
    bool padded_contexts;   /* they hold a text's padding too */
    int threads;
    bvl_poll poll;
    void *poll_context;
    bvl_plan *plan; /* NULL, or what is told what the call would do: nothing is computed */
} bvl_call;

/* Tokens of item i that a context of this program holds: a picture's, or those of a text that the mask keeps.
 */
int64_t bvl_context_rows(const bvl_program *program, const bvl_inputs *inputs, bool padded, int64_t i);

/* Checks the inputs against the program; then computes. Fails with INVALID or NO_MEMORY before
 * anything is computed, with CANCELLED when poll said so. A cache is longer by L after success alone. */
bvl_status bvl_program_run(bvl_program *program, const bvl_inputs *inputs, const bvl_call *call,
                           bvl_error *err);

/* The precision of stems, convolutions and what stands between blocks: in int8 programs bfloat16, for these
 * products are short and see pictures at first hand. What sees one row an item stays in float32. */
BVL_INLINE bvl_precision bvl_outer_precision(const bvl_program *p, int64_t rows) {
    return rows == 1 ? BVL_FLOAT32 : p->precision == BVL_INT8 ? BVL_BFLOAT16 : p->precision;
}

/* Query tokens of a text slot in this call. */
BVL_INLINE int64_t bvl_slot_queries(const bvl_slot *slot, const bvl_inputs *in) {
    return slot->kind == BVL_TEXT_ROWS && in->contexts ? slot->rows : 0;
}

/* Whether items of one call may differ in their rows. */
BVL_INLINE bool bvl_rows_vary(const bvl_slot *slot) {
    return slot->kind == BVL_PATCH_ROWS || slot->kind == BVL_POOLED_ROWS;
}

/* How many patches the picture of an item has down and across. */
BVL_INLINE void bvl_grid_of(const bvl_inputs *in, int64_t item, int64_t *rows, int64_t *cols) {
    *rows = in->spatial_shapes ? in->spatial_shapes[2 * item] : in->grid_height;
    *cols = in->spatial_shapes ? in->spatial_shapes[2 * item + 1] : in->grid_width;
}

/* The first patch of square t, of `side` x `side`, in a grid of `cols` patches a line. */
BVL_INLINE int64_t bvl_square_at(int64_t t, int64_t cols, int64_t side) {
    return t / (cols / side) * side * cols + t % (cols / side) * side;
}

/* Rows of an item in a slot; of pictures of several sizes the most. */
BVL_INLINE int64_t bvl_slot_rows(const bvl_slot *slot, const bvl_inputs *in) {
    switch (slot->kind) {
        case BVL_TEXT_ROWS: return bvl_slot_queries(slot, in) + in->L;
        case BVL_PATCH_ROWS: return slot->rows + in->patches;
        case BVL_POOLED_ROWS: return in->patches / (slot->rows * slot->rows);
        default: return slot->rows;
    }
}

/* Rows of a slot before item i of a micro-batch, which may be run->count: all of them. */
BVL_INLINE int64_t bvl_rows_before(const bvl_run *run, const bvl_slot *slot, int64_t i) {
    const bvl_inputs *in = run->inputs;
    if (!bvl_rows_vary(slot) || !in->patches_before) return i * bvl_slot_rows(slot, in);
    const int64_t patches = in->patches_before[run->first + i] - in->patches_before[run->first];
    return slot->kind == BVL_PATCH_ROWS ? i * slot->rows + patches : patches / (slot->rows * slot->rows);
}

/* Rows of item i of a micro-batch. */
BVL_INLINE int64_t bvl_item_rows(const bvl_run *run, const bvl_slot *slot, int64_t i) {
    return bvl_rows_before(run, slot, i + 1) - bvl_rows_before(run, slot, i);
}

/* The rows of a slot an operation works on, and the words between them: all, or one of each item (run->pool).
 */
BVL_INLINE int64_t bvl_run_rows(const bvl_run *run, int slot, int64_t *ld) {
    const bvl_slot *s = &run->program->slots[slot];
    *ld = run->pool ? bvl_slot_rows(s, run->inputs) * s->ld : s->ld;
    return run->pool ? run->count : bvl_rows_before(run, s, run->count);
}

/* Shape checks for build functions: weight i must be [d0], [d0, d1] ...; -1 means any size >= 1. */
bvl_status bvl_expect(const bvl_op *op, const bvl_build *build, int weight, int rank, int64_t d0, int64_t d1,
                      int64_t d2, int64_t d3, bvl_error *err);
/* Checks that a parameter is a whole number of a range, which is then *out. */
bvl_status bvl_expect_whole(const bvl_op *op, const bvl_build *build, int param, int64_t least, int64_t most,
                            int64_t *out, bvl_error *err);

#endif
