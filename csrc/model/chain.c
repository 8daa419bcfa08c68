/* chain.c: sub-layers of one slot that run together, from one self-attention up to the next.
 *
 * What works row by row between two attentions is a phase: a worker with rows enough takes a strip of them
 * through all of it while they are in its cache, and barriers stand between phases alone. Where attention
 * looks within windows, a worker takes a few of them through the whole chain. A lone window of all rows is
 * worked on by the team.
 *
 * Where the first rows of an item are query tokens, sub-layers may be theirs alone, or the text's alone;
 * those go item by item, for the rows of one side lie apart.
 */
#include <stdio.h>
#include <string.h>

#include "sublayers.h"

enum {
    MOST_STEPS = 4,
    WINDOW_ROWS = 128 /* of windows that a worker takes at once, so that they stay in its cache */
};

typedef struct {
    void (*work)(const void *state, const bvl_run *run, const bvl_place *at);
    const bvl_sublayer *state;
    const bvl_record *record;
} step;

typedef struct {
    step steps[MOST_STEPS];
    int count;
    bool inner; /* some step fills `wide`, where what is projected would lie */
} phase;

int bvl_chain_length(const bvl_program *p, int first, const bool *live, float *const *states) {
    int at = first;
    while (!states[at] && at + 1 < p->record_count && live[at + 1] && p->records[at + 1].op->steps &&
           !p->records[at + 1].op->prunes && p->records[at + 1].src == p->records[first].src)
        at++;
    return at + 1 - first;
}

/* Words of scratch for so many rows. */
static int64_t scratch(const bvl_program *p, int64_t rows) {
    return rows * (p->words.narrow + p->words.wide + p->words.operand);
}

int64_t bvl_chain_shared(const bvl_program *p, const bvl_record *r, int64_t count, const bvl_inputs *in) {
    const bvl_sublayer *s = r->state;
    return s->window ? 0 : scratch(p, count * bvl_slot_rows(&p->slots[r->src], in)); /* or fewer */
}

static int64_t windows_at_once(int64_t window) {
    return BVL_MAX(1, WINDOW_ROWS / window);
}

int64_t bvl_windows_local(const bvl_program *p, const bvl_record *r) {
    const int64_t window = ((const bvl_sublayer *)r->state)->window, rows = windows_at_once(window) * window;
    return rows * p->slots[r->src].ld + scratch(p, rows);
}

/* "self_attention add, feed_forward add, self_attention project", as a line. */
static void tell_phase(const phase *f, bvl_plan *plan) {
    char line[256] = "";
    for (int i = 0; i < f->count; i++) {
        const bvl_op *op = f->steps[i].record->op;
        const size_t used = strlen(line);
        snprintf(line + used, sizeof line - used, "%s%s%s", i ? ", " : "", op->name,
                 f->steps[i].work == op->steps->project ? " project" : " add");
    }
    bvl_plan_line(plan, "%s", line);
}

/* A phase by the team; or, where that gives each worker rows enough to read all weights for, by each worker
 * alone over its share, a strip at a time. The team meets at its end. */
static void run_phase(phase *f, const bvl_run *run, const bvl_place *all) {
    const int64_t strip = run->kernels->strip_rows;
    int64_t begin, end;
    if (run->plan) {
        if (f->count) tell_phase(f, run->plan);
        *f = (phase){.count = 0};
        return;
    }
    if (all->rows < run->team.nt * strip * 2 / 3) {
        for (int i = 0; i < f->count; i++) f->steps[i].work(f->steps[i].state, run, all);
        *f = (phase){.count = 0};
        return;
    }
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    bvl_share(all->rows, run->team.tid, run->team.nt, &begin, &end);
    const int64_t pieces = (end - begin + strip - 1) / strip;
    const int64_t each = bvl_round_up((end - begin + pieces - 1) / pieces, run->kernels->strip_step);
    bvl_place at = *all;
    at.wide += begin * run->program->words.wide;
    at.z += begin * run->program->words.operand;
    for (int64_t first = begin; first < end && f->count; first += each) {
        at.x = all->x + first * all->ldx;
        at.h = all->h + first * all->ldh;
        at.rows = BVL_MIN(each, end - first);
        for (int i = 0; i < f->count; i++) {
            at.qkv = all->qkv + first * f->steps[i].state->ldq;
            f->steps[i].work(f->steps[i].state, &alone, &at);
        }
    }
    if (f->count) bvl_barrier(run->team);
    *f = (phase){.count = 0};
}

/* Puts a row-wise step into the phase, which is run before where it is full. */
static void put(phase *f, const bvl_run *run, const bvl_place *all, step next) {
    if (f->count == MOST_STEPS) run_phase(f, run, all);
    f->steps[f->count++] = next;
}

/* Moves the row that run->pool takes to row 0 of its item. */
static void keep_pooled(const bvl_run *run, float *x, int64_t ldx, int64_t T, int64_t D) {
    int64_t begin, end;
    bvl_share(run->count, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const int64_t row = run->pool->op->row(run->pool, run, i);
        if (row > 0) memcpy(x + i * T * ldx, x + (i * T + row) * ldx, (size_t)D * sizeof(float));
    }
    bvl_barrier(run->team);
}

/* One sub-layer over `rows` rows of each item from `begin` of its T on. */
static void run_part(const bvl_record *r, const bvl_run *run, const bvl_place *all, int64_t begin,
                     int64_t rows, int64_t T) {
    const bvl_steps *steps = r->op->steps;
    bvl_place at = *all;
    at.rows = rows;
    if (bvl_plan_line(run->plan, "%s of %s, item by item", r->op->name,
                      bvl_part_names[((const bvl_sublayer *)r->state)->part]))
        return;
    for (int64_t i = 0; i < run->count; i++) {
        at.x = all->x + (i * T + begin) * at.ldx;
        if (steps->attend) {
            steps->project(r->state, run, &at);
            steps->attend(r->state, run, r->src, &at, run->first + i, 1, T);
        }
        steps->add(r->state, run, &at);
    }
}

/* The chain over run->count items of T rows, or of as many as each has, at `at`, whose scratch begins at its
 * h. */
static void run_rows(const bvl_record *records, int count, const bvl_run *run, bvl_place at, int64_t T) {
    const bvl_program *p = run->program;
    const int64_t queries = run->inputs->contexts ? p->queries : 0;
    phase f = {.count = 0};
    at.ldh = p->words.narrow;
    at.wide = at.qkv = at.h + at.rows * at.ldh;
    at.z = at.wide + at.rows * p->words.wide;
    for (const bvl_record *r = records; r < records + count; r++) {
        const bvl_sublayer *s = r->state;
        const bvl_steps *steps = r->op->steps;
        const int64_t first = s->part == BVL_TOKEN_ROWS ? queries : 0;
        const int64_t rows = (s->part == BVL_QUERY_ROWS ? queries : T) - first;
        if (rows == 0 || (s->optional && !run->inputs->contexts)) continue;
        if (rows < T) {
            run_phase(&f, run, &at);
            run_part(r, run, &at, first, rows, T);
            continue;
        }
        if (steps->attend) {
            if (f.inner) run_phase(&f, run, &at);
            put(&f, run, &at, (step){steps->project, s, r});
            run_phase(&f, run, &at);
            if (!bvl_plan_line(run->plan, "%s attend%s", r->op->name,
                               run->pool && r->op->prunes ? ", of which one row an item goes on" : ""))
                steps->attend(s, run, r->src, &at, run->first, run->count, T);
            if (run->pool && r->op->prunes && !run->plan) {
                keep_pooled(run, at.x, at.ldx, T, p->slots[r->src].cols);
                at.rows = bvl_run_rows(run, r->src, &at.ldx); /* from here on, one row an item */
            }
        }
        put(&f, run, &at, (step){steps->add, s, r});
        f.inner |= s->inner;
    }
    run_phase(&f, run, &at);
}

/* Each worker takes whole windows out of x, through the chain alone, and puts them back. */
static void run_windows(const bvl_record *records, int count, const bvl_run *run) {
    const bvl_sublayer *s = records->state;
    const bvl_slot *slot = &run->program->slots[records->src];
    const int64_t W = s->window, most = windows_at_once(W), each = slot->rows / W;
    const size_t bytes = (size_t)slot->cols * sizeof(float);
    bvl_run alone = *run;
    alone.team = (bvl_team){0, 1, NULL};
    bvl_place at = {.x = run->local, .ldx = slot->ld};
    int64_t begin, end;
    if (bvl_plan_line(run->plan, "windows of %lld rows, a few at a time through:", (long long)W)) {
        at.h = at.x;
        run_rows(records, count, run, at, W);
        return;
    }
    at.h = at.x + most * W * slot->ld;
    alone.local = at.h + scratch(run->program, most * W);
    bvl_share(run->count * each, run->team.tid, run->team.nt, &begin, &end);
    for (int64_t w = begin; w < end;) {
        alone.first = w % each; /* of its item's windows */
        alone.count = BVL_MIN(BVL_MIN(most, end - w), each - alone.first);
        float *item = run->slots[records->src] + w / each * slot->rows * slot->ld;
        const int32_t *order = s->order + alone.first * W;
        at.rows = alone.count * W;
        for (int64_t i = 0; i < at.rows; i++) memcpy(at.x + i * slot->ld, item + order[i] * slot->ld, bytes);
        run_rows(records, count, &alone, at, W);
        for (int64_t i = 0; i < at.rows; i++) memcpy(item + order[i] * slot->ld, at.x + i * slot->ld, bytes);
        w += alone.count;
    }
    bvl_barrier(run->team);
}

void bvl_chain_run(const bvl_record *records, int count, const bvl_run *run) {
    const bvl_slot *slot = &run->program->slots[records->src];
    const int64_t T = bvl_slot_rows(slot, run->inputs);
    if (((const bvl_sublayer *)records->state)->window) {
        run_windows(records, count, run);
        return;
    }
    bvl_place at = {.x = run->slots[records->src], .h = run->shared, .ldx = slot->ld};
    at.rows = bvl_rows_before(run, slot, run->count);
    run_rows(records, count, run, at, T);
}
