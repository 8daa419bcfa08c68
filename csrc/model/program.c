/* program.c: building a program, laying out one call, and running it.
 *
 * A call of B items on nt threads: while there are at least nt items, each worker takes micro-batches of
 * whole items and runs every record on them alone, with no barrier; the last B mod nt items are run by the
 * whole team together, each operation split over it. Which way an item goes does not change its numbers.
 *
 * Records whose results nobody asked for are left out; and where all that is asked of the last block is the
 * one row a pooling takes, that block and what follows compute that row alone. Neither changes a bit.
 */
#include "program.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "../arena.h"
#include "../ops/linear.h"
#include "../ops/rotary.h"
#include "ops.h"
#include "sublayers.h"

const char *const bvl_row_kind_names[] = {"fixed", "text", "patches", "pooled", NULL};

bvl_program *bvl_program_new(const bvl_kernels *kernels, bvl_precision precision) {
    bvl_program *program = bvl_alloc(sizeof *program);
    if (!program) return NULL;
    program->kernels = kernels;
    program->precision = precision;
    program->feature_token = -1;
    program->axes = 1;
    return program;
}

void bvl_program_free(bvl_program *program) {
    if (!program) return;
    for (int i = 0; i < program->record_count; i++) bvl_free(program->records[i].state);
    bvl_store_free(&program->store);
    bvl_free(program->records);
    bvl_free(program->scratch);
    bvl_free(program);
}

int bvl_program_find_slot(const bvl_program *program, const char *name) {
    for (int i = 0; i < program->slot_count; i++)
        if (strcmp(program->slots[i].name, name) == 0) return i;
    return -1;
}

int bvl_program_slot(bvl_program *program, const char *name, int64_t rows, int64_t cols, bvl_row_kind kind,
                     bvl_error *err) {
    if (program->sealed || program->slot_count == BVL_MAX_SLOTS ||
        strlen(name) >= sizeof program->slots[0].name || bvl_program_find_slot(program, name) >= 0) {
        bvl_fail(err, BVL_INVALID, "slot '%s': expected a new name, at most %d slots, no run yet", name,
                 BVL_MAX_SLOTS);
        return -1;
    }
    const int64_t least = kind == BVL_FIXED_ROWS || kind == BVL_POOLED_ROWS;
    const int64_t most = kind == BVL_POOLED_ROWS ? 1 << 10 : 1 << 20;
    if (rows < least || rows > most || cols < 1 || cols > 1 << 20) {
        bvl_fail(err, BVL_INVALID,
                 "slot '%s': %lld x %lld: expected rows from %lld to %lld and up to 2^20 columns", name,
                 (long long)rows, (long long)cols, (long long)least, (long long)most);
        return -1;
    }
    bvl_slot *slot = &program->slots[program->slot_count];
    snprintf(slot->name, sizeof slot->name, "%s", name);
    slot->rows = rows;
    slot->cols = cols;
    slot->kind = kind;
    slot->ld = bvl_padded(cols);
    return program->slot_count++;
}

const bvl_op *bvl_find_op(const char *name) {
    for (int i = 0; bvl_ops[i]; i++)
        if (strcmp(bvl_ops[i]->name, name) == 0) return bvl_ops[i];
    return NULL;
}

bvl_status bvl_program_add(bvl_program *program, const bvl_op *op, int src, int dst, const bvl_build *build,
                           bvl_error *err) {
    bvl_record record = {op, src, dst, -1, NULL};
    if (program->sealed)
        return bvl_fail(err, BVL_INVALID,
                        "%s: the program has run, or a record before this one failed: it is immutable",
                        op->name);
    if (program->record_count == BVL_MAX_RECORDS)
        return bvl_fail(err, BVL_INVALID, "%s: more than %d records", op->name, BVL_MAX_RECORDS);
    bvl_record *records =
        bvl_grown(program->records, program->record_count, &program->record_capacity, sizeof *records);
    if (!records) return bvl_fail(err, BVL_NO_MEMORY, "no memory for one more record");
    program->records = records;
    if (op->build(program, &record, build, err) != BVL_OK) {
        bvl_free(record.state);
        program->sealed = true; /* what it took from the store, or set of the program, stays */
        return err->status;
    }
    program->records[program->record_count++] = record;
    return BVL_OK;
}

/* Layout of one worker's memory for micro-batches of `count` items. */
typedef struct {
    size_t slots[BVL_MAX_SLOTS];
    size_t key_bias, turns[BVL_MAX_TURNS], shared,
        local; /* offsets in floats; local: one per worker of a team */
    size_t local_size, total;
} layout;

/* Reserves count * size floats at *at; false on overflow. */
static bool reserve(size_t *at, size_t *total, int64_t count, int64_t size) {
    size_t floats;
    *at = *total;
    return bvl_size_mul((size_t)count, (size_t)size, &floats) && floats < SIZE_MAX / 64 &&
           !__builtin_add_overflow(*total, (floats + 15) / 16 * 16, total);
}

typedef struct {
    bvl_program *program;
    const bvl_inputs *inputs;
    const bvl_call *call;
    int64_t whole, micro; /* items that workers take alone, items per micro-batch */
    int64_t team_micro;   /* items per micro-batch of the whole team */
    layout own, together; /* a worker's layout, the team's */
    float *memory;
    int nt;
    bool live[BVL_MAX_RECORDS]; /* records that some wanted output needs */
    int last_block, pool;       /* records between which one row an item is enough, or -1 */
    atomic_llong next;
    atomic_bool cancelled;
} job;

static void fill_key_bias(float *bias, const bvl_run *run) {
    const int64_t keys = run->inputs->past + run->inputs->L;
    const int64_t queries = run->inputs->contexts ? run->program->queries : 0;
    const int64_t *mask = run->inputs->attention_mask + run->first * keys;
    for (int64_t i = 0; i < run->count; i++) {
        for (int64_t t = 0; t < queries; t++) *bias++ = 0.0f;
        for (int64_t t = 0; t < keys; t++) *bias++ = *mask++ ? 0.0f : -INFINITY;
    }
}

static void fill_turns(float *rows, const bvl_turns *turns, const bvl_run *run) {
    const bvl_inputs *in = run->inputs;
    const int64_t axes = run->program->axes;
    int64_t place[BVL_MAX_AXES]; /* of a token in its text, along every axis */
    for (int64_t i = 0; i < run->count * in->L && turns->frequencies; i++) {
        const int64_t at = run->first * in->L + i;
        for (int64_t a = 0; a < axes; a++) place[a] = in->past + i % in->L;
        bvl_rotary_turn(rows + i * 2 * turns->half, in->position_ids ? in->position_ids + at * axes : place,
                        axes, turns->frequencies, turns->half);
    }
}

/* A slot's rows of a micro-batch to out [B, rows, cols], zeros after those of an item; nothing where out is
 * NULL. */
static void write_slot(const bvl_run *run, int s, float *out) {
    const bvl_slot *slot = &run->program->slots[s];
    const int64_t rows = bvl_slot_rows(slot, run->inputs);
    const float *x = run->slots[s];
    if (!out) return;
    for (int64_t i = 0; i < run->count; i++) {
        float *item = out + (run->first + i) * rows * slot->cols;
        const int64_t there = bvl_item_rows(run, slot, i);
        for (int64_t r = 0; r < there; r++, x += slot->ld)
            memcpy(item + r * slot->cols, x, (size_t)slot->cols * sizeof(float));
        memset(item + there * slot->cols, 0, (size_t)((rows - there) * slot->cols) * sizeof(float));
    }
}

/* The records that are needed, in their order. */
static void run_records(job *j, bvl_run *run) {
    const bvl_program *p = j->program;
    for (int i = 0; i < p->record_count; i++) {
        /* a team must agree on stopping, so it stops only between micro-batches */
        if (run->team.nt == 1 && atomic_load_explicit(&j->cancelled, memory_order_relaxed)) return;
        if (!j->live[i]) continue;
        if (i == j->last_block) run->pool = &p->records[j->pool];
        if (p->records[i].op->steps) {
            const int length = bvl_chain_length(p, i, j->live, j->call->states);
            bvl_chain_run(&p->records[i], length, run);
            i += length - 1;
        } else if (!bvl_plan_line(run->plan, "%s -> %s", p->records[i].op->name,
                                  p->slots[p->records[i].dst].name)) {
            p->records[i].op->run(&p->records[i], run);
        }
        if (i == j->pool) run->pool = NULL;
        if (!j->call->states[i] || run->plan) continue;
        if (run->team.tid == 0) write_slot(run, p->records[i].dst, j->call->states[i]);
        bvl_barrier(run->team); /* the next record may write there */
    }
}

/* Every record over one micro-batch; team is this worker alone or the whole team. */
static void run_micro_batch(job *j, const layout *l, float *memory, int64_t first, int64_t count,
                            bvl_team team) {
    const bvl_program *p = j->program;
    bvl_run run = {.program = p,
                   .kernels = p->kernels,
                   .inputs = j->inputs,
                   .team = team,
                   .first = first,
                   .count = count,
                   .shared = memory + l->shared,
                   .local = memory + l->local + (size_t)team.tid * l->local_size};
    for (int i = 0; i < p->slot_count; i++) run.slots[i] = memory + l->slots[i];
    if (j->call->contexts) {
        run.made = j->call->contexts + first;
        run.padded = j->call->padded_contexts;
    }
    if (j->inputs->attention_mask) run.key_bias = memory + l->key_bias;
    if (team.tid == 0 && run.key_bias) fill_key_bias(memory + l->key_bias, &run);
    for (int i = 0; i < BVL_MAX_TURNS; i++) {
        run.turns[i] = memory + l->turns[i];
        if (team.tid == 0) fill_turns(run.turns[i], &p->turns[i], &run);
    }
    if (run.key_bias || p->turns[0].frequencies) bvl_barrier(team);
    run_records(j, &run);
    for (int s = 0; s < p->slot_count && team.tid == 0; s++) write_slot(&run, s, j->call->outputs[s]);
    bvl_barrier(team);
}

/* Asks the caller, on its own thread, whether to stop; never again after it said so. */
static void poll(job *j, bvl_team team) {
    if (team.tid != 0 || !j->call->poll || atomic_load(&j->cancelled)) return;
    if (j->call->poll(j->call->poll_context)) atomic_store(&j->cancelled, true);
}

static void work(void *context, bvl_team team) {
    job *j = context;
    const bvl_team alone = {0, 1, NULL};
    for (;;) {
        const int64_t first = atomic_fetch_add(&j->next, j->micro);
        if (first >= j->whole) break;
        poll(j, team);
        if (atomic_load(&j->cancelled)) break;
        run_micro_batch(j, &j->own, j->memory + (size_t)team.tid * j->own.total, first,
                        BVL_MIN(j->micro, j->whole - first), alone);
    }
    bvl_barrier(team);
    for (int64_t i = j->whole; i < j->inputs->B; i += j->team_micro) {
        poll(j, team);
        bvl_barrier(team);
        if (atomic_load(&j->cancelled)) break;
        run_micro_batch(j, &j->together, j->memory, i, BVL_MIN(j->team_micro, j->inputs->B - i), team);
    }
}

int64_t bvl_context_rows(const bvl_program *p, const bvl_inputs *in, bool padded, int64_t i) {
    const bvl_slot *slot = &p->slots[p->context_slot];
    int64_t rows = 0;
    if (slot->kind != BVL_TEXT_ROWS || padded || !in->attention_mask) return bvl_slot_rows(slot, in);
    const int64_t *mask = bvl_item_mask(in, i);
    for (int64_t t = 0; t < in->L; t++) rows += mask[t] != 0;
    return rows;
}

/* Marks the records that wanted outputs need: backwards, a record is live when its dst is needed. */
static void find_live(job *j) {
    const bvl_program *p = j->program;
    bool needed[BVL_MAX_SLOTS];
    for (int s = 0; s < p->slot_count; s++) needed[s] = j->call->outputs[s] != NULL;
    for (int i = p->record_count - 1; i >= 0; i--) {
        const bvl_record *r = &p->records[i];
        if (j->call->states[i]) needed[r->dst] = true;
        j->live[i] = r->op->makes_context ? j->call->contexts != NULL : needed[r->dst];
        if (j->live[i]) needed[r->src] = true;
        if (j->live[i] && r->also >= 0) needed[r->also] = true;
    }
}

/* Finds the last block and the pooling, when all between them is row by row and nobody else reads those rows.
 */
static void find_pooling(job *j) {
    const bvl_program *p = j->program;
    bool touched[BVL_MAX_SLOTS] = {false}; /* slots that will hold one row an item */
    bool filled[BVL_MAX_SLOTS] = {false};  /* slots that hold all rows already, and may be added to */
    int slot = -1;
    j->last_block = j->pool = -1;
    for (int i = p->record_count - 1; i >= 0 && slot < 0; i--)
        if (j->live[i] && p->records[i].op->prunes) j->last_block = i, slot = p->records[i].dst;
    if ((p->queries && j->inputs->contexts) || p->windowed) slot = -1; /* rows of an item part ways */
    if (j->inputs->patches_before) slot = -1; /* items have rows of their own number */
    if (j->call->any_state) slot = -1;        /* all rows are asked for */
    if (slot < 0) {
        j->last_block = -1;
        return;
    }
    touched[slot] = true;
    for (int i = 0; i < j->last_block; i++) filled[p->records[i].dst] = j->live[i];
    for (int i = j->last_block + 1; i < p->record_count; i++) {
        const bvl_record *r = &p->records[i];
        if (!j->live[i] || (j->pool >= 0 && !touched[r->src])) continue;
        if (j->pool < 0 && r->src == slot && r->op->row_wise && (r->dst == slot || !filled[r->dst]))
            touched[slot = r->dst] = true;
        else if (j->pool < 0 && r->src == slot && r->op->row &&
                 r->op->row(r, &(bvl_run){.program = j->program, .inputs = j->inputs}, 0) >= 0)
            j->pool = i;
        else
            j->pool = p->record_count; /* somebody else reads these rows, or works in between */
    }
    for (int s = 0; s < p->slot_count; s++)
        if (touched[s] && j->call->outputs[s]) j->pool = p->record_count;
    if (j->pool < 0 || j->pool == p->record_count) j->last_block = j->pool = -1;
}

/* What micro-batches of `count` items need, of the records that are run. */
static bool plan(layout *l, const job *j, int64_t count, int workers) {
    const bvl_program *p = j->program;
    const bvl_inputs *in = j->inputs;
    int64_t shared = 0, local = 0, turned = in->L;
    bool ok = true;
    l->total = 0;
    for (int i = 0; i < p->slot_count; i++) {
        const bvl_slot *slot = &p->slots[i];
        ok = ok && reserve(&l->slots[i], &l->total, count * bvl_slot_rows(slot, in), slot->ld);
        if (slot->kind == BVL_PATCH_ROWS) turned = BVL_MAX(turned, bvl_slot_rows(slot, in));
    }
    for (int i = 0, chain = 0; i < p->record_count; i++, chain -= chain > 0) {
        const bvl_record *r = &p->records[i];
        if (!j->live[i]) continue;
        if (r->op->steps && !chain) {
            chain = bvl_chain_length(p, i, j->live, j->call->states);
            shared = BVL_MAX(shared, bvl_chain_shared(p, r, count, in));
        }
        if (r->op->shared) shared = BVL_MAX(shared, r->op->shared(p, r, count, in));
        if (r->op->local) local = BVL_MAX(local, r->op->local(p, r, in));
    }
    ok = ok && reserve(&l->key_bias, &l->total, count, p->queries + in->past + in->L) &&
         reserve(&l->turns[0], &l->total, count * turned, 2 * p->turns[0].half) &&
         reserve(&l->turns[1], &l->total, count * turned, 2 * p->turns[1].half) &&
         reserve(&l->shared, &l->total, 1, shared);
    l->local_size = (size_t)bvl_round_up(local, 16);
    return ok && reserve(&l->local, &l->total, workers, (int64_t)l->local_size);
}

/* Pictures of several sizes that workers take alone, `micro` at a time, each by who is free: the most after
 * which all are free within 1/16 of their time. A row costs its products, of some 12 D^2 weights a layer, and
 * its attention to T others, of 2 T D numbers. Without memory to count with: as if all were alike. */
static int64_t alone_by_cost(const job *j, int64_t D) {
    const int64_t *before = j->inputs->patches_before, B = j->inputs->B;
    int64_t whole = 0;
    double *busy = bvl_alloc_array((size_t)j->nt, sizeof *busy), total = 0;
    if (!busy) return B - B % j->nt;
    for (int64_t i = 0; i < B; i += j->micro) {
        int free_one = 0;
        double longest = 0;
        for (int t = 1; t < j->nt; t++)
            if (busy[t] < busy[free_one]) free_one = t;
        for (int64_t n = i; n < BVL_MIN(B, i + j->micro); n++) {
            const double T = (double)(before[n + 1] - before[n]);
            busy[free_one] += T * (6.0 * (double)D + T);
            total += T * (6.0 * (double)D + T);
        }
        for (int t = 0; t < j->nt; t++) longest = BVL_MAX(longest, busy[t]);
        if (longest * j->nt <= total * 17 / 16) whole = BVL_MIN(B, i + j->micro);
    }
    bvl_free(busy);
    return whole;
}

/* Decides the split and lays out the memory; false when sizes overflow. */
static bool prepare(job *j, int threads) {
    const bvl_program *p = j->program;
    const int64_t B = j->inputs->B, together = p->kernels->micro_batch_rows;
    int64_t rows = 1;
    find_live(j);
    find_pooling(j);
    for (int i = 0; i < p->slot_count; i++) rows = BVL_MAX(rows, bvl_slot_rows(&p->slots[i], j->inputs));
    j->nt = threads;
    j->whole = B - B % threads;
    j->team_micro = 1;
    if (j->inputs->cache && B * rows <= together) {
        /* decoding reads all weights for a few rows: once for all items */
        j->whole = 0;
        j->team_micro = B;
    }
    /* a worker's share cut into equal micro-batches, so that no worker waits for a last odd one */
    const int64_t share = j->whole / threads, most = BVL_MAX(1, together / rows);
    const int64_t pieces = BVL_MAX(1, (share + most - 1) / most);
    j->micro = BVL_MAX(1, (share + pieces - 1) / pieces);
    for (int i = 0; i < p->slot_count; i++)
        if (p->slots[i].kind == BVL_PATCH_ROWS && j->inputs->patches_before)
            j->whole = alone_by_cost(j, p->slots[i].cols);
    return plan(&j->own, j, j->micro, 1) && plan(&j->together, j, j->team_micro, threads);
}

/* The scratch of the last call when it is large enough, else new memory; no lock: what is kept is
 * taken and put back by one atomic exchange, and concurrent calls allocate their own. */
static float *take_memory(bvl_program *p, size_t bytes) {
    float *kept = __atomic_exchange_n(&p->scratch, NULL, __ATOMIC_ACQ_REL);
    if (kept) {
        size_t have;
        memcpy(&have, kept, sizeof have);
        if (have >= bytes) return kept;
        bvl_free(kept);
    }
    float *memory = bytes < SIZE_MAX - BVL_ALIGNMENT ? bvl_alloc(bytes + BVL_ALIGNMENT) : NULL;
    if (memory) memcpy(memory, &bytes, sizeof bytes);
    return memory;
}

static bvl_status run_planned(bvl_program *program, const bvl_inputs *inputs, const bvl_call *call,
                              bvl_error *err) {
    job j = {.program = program, .inputs = inputs, .call = call};
    size_t floats, bytes;
    const int threads = BVL_MAX(1, call->threads);
    if (!prepare(&j, threads) || !bvl_size_mul(j.own.total, j.whole ? (size_t)threads : 0, &floats) ||
        !bvl_size_mul(BVL_MAX(floats, j.together.total), sizeof(float), &bytes))
        return bvl_fail(err, BVL_NO_MEMORY, "scratch of this call does not fit in memory");
    if (call->plan) {
        float nothing[1]; /* read by nobody */
        bvl_run run = {
            .program = program, .kernels = program->kernels, .inputs = inputs, .team = {0, 1, NULL}};
        for (int i = 0; i < program->slot_count; i++) run.slots[i] = nothing;
        run.shared = run.local = nothing;
        run.count = 1;
        run.plan = call->plan;
        run_records(&j, &run);
        return call->plan->failed ? bvl_fail(err, BVL_NO_MEMORY, "no memory for a plan") : BVL_OK;
    }
    float *memory = take_memory(program, bytes);
    if (!memory) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %zu bytes of scratch", bytes);
    j.memory = memory + BVL_ALIGNMENT / sizeof(float);
    bvl_parallel(threads, work, &j);
    bvl_free(__atomic_exchange_n(&program->scratch, memory, __ATOMIC_ACQ_REL));
    if (atomic_load(&j.cancelled)) return bvl_fail(err, BVL_CANCELLED, "interrupted");
    return BVL_OK;
}

static bvl_status run_checked(bvl_program *program, const bvl_inputs *inputs, const bvl_call *call,
                              bvl_error *err) {
    if (bvl_inputs_check(program, inputs, err) != BVL_OK) return err->status;
    const bool flat = program->flat_features && inputs->features;
    const bool vary = inputs->spatial_shapes || inputs->num_frames;
    if (!vary && !flat) return run_planned(program, inputs, call, err);
    bvl_inputs in = *inputs;
    int64_t *before = bvl_alloc_array(2 * ((size_t)in.B + 1), sizeof *before); /* of patches, of features */
    if (!before) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %lld items", (long long)in.B);
    int64_t *features = before + in.B + 1;
    for (int64_t i = 0; i < in.B; i++) {
        int64_t rows = 0, count = 0;
        if (in.spatial_shapes) rows = in.spatial_shapes[2 * i] * in.spatial_shapes[2 * i + 1];
        if (in.num_frames) rows = (in.num_frames[i] + program->frames_per_row - 1) / program->frames_per_row;
        for (int64_t t = 0; flat && t < in.L; t++)
            count += in.input_ids[i * in.L + t] == program->feature_token;
        before[i + 1] = before[i] + rows;
        features[i + 1] = features[i] + count;
    }
    if (vary) in.patches_before = before;
    if (flat) in.features_before = features;
    const bvl_status status = run_planned(program, &in, call, err);
    bvl_free(before);
    return status;
}

bvl_status bvl_program_run(bvl_program *program, const bvl_inputs *inputs, const bvl_call *call,
                           bvl_error *err) {
    bvl_cache *cache = inputs->cache;
    if (!cache) return run_checked(program, inputs, call, err);
    /* inputs->past was read before the cache was taken: another call may have appended since */
    if (atomic_flag_test_and_set(&cache->busy))
        return bvl_fail(err, BVL_INVALID, "cache: in use by another call");
    const bvl_status status = cache->length == inputs->past
                                  ? run_checked(program, inputs, call, err)
                                  : bvl_fail(err, BVL_INVALID, "cache: in use by another call");
    if (status == BVL_OK && !call->plan) cache->length += inputs->L;
    atomic_flag_clear(&cache->busy);
    return status;
}
