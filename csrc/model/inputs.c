/* inputs.c: whether what a call gives is what a program takes. */
#include "inputs.h"

#include <stdio.h>

#include "program.h"

static const bvl_size ITEMS = {BVL_ITEMS, 0}, TOKENS = {BVL_TOKENS, 0};

void bvl_declare_tokens(bvl_declared *declared, bool past, int64_t types) {
    declared[BVL_ATTENTION_MASK] =
        (bvl_declared){.name = "attention_mask",
                       .rank = 2,
                       .sizes = {ITEMS, past ? (bvl_size){BVL_ALL_TOKENS, 0} : TOKENS},
                       .integers = true};
    if (!types) return;
    declared[BVL_TOKEN_TYPE_IDS] = (bvl_declared){
        .name = "token_type_ids", .rank = 2, .sizes = {ITEMS, TOKENS}, .integers = true, .below = types};
}

/* A size of the call that is known already, or -1. */
static int64_t known(const bvl_inputs *in, bvl_size size) {
    switch (size.kind) {
        case BVL_EXACTLY: return size.count;
        case BVL_ITEMS: return in->B;
        case BVL_PATCHES: return in->patches ? in->patches : -1;
        case BVL_FRAMES: return in->frames ? in->frames : -1;
        case BVL_TOKENS: return in->L;
        case BVL_ALL_TOKENS: return in->L < 0 ? -1 : in->past + in->L;
        default: return -1;
    }
}

/* "(3, n, 48)": with the sizes of the call `in`, or as the program says it where that is NULL. */
static const char *format(char *text, size_t room, const bvl_declared *d, const bvl_inputs *in) {
    static const char *const letters[] = {"", "1 to ", "B", "N", "N", "H", "W", "L", "L", "n", "n"};
    static const bvl_inputs unknown = {.B = -1, .L = -1};
    size_t used = (size_t)snprintf(text, room, "(");
    for (int i = 0; i < d->rank && used < room; i++) {
        const bvl_size size = d->sizes[i];
        const int64_t n = size.kind == BVL_AT_MOST ? size.count : known(in ? in : &unknown, size);
        const char *separator = i ? ", " : "";
        used += (size_t)(n < 0 ? snprintf(text + used, room - used, "%s%s", separator, letters[size.kind])
                               : snprintf(text + used, room - used, "%s%s%lld", separator,
                                          size.kind == BVL_AT_MOST ? "1 to " : "", (long long)n));
    }
    if (used < room) snprintf(text + used, room - used, ")");
    return text;
}

static bvl_status misshapen(const bvl_declared *d, const bvl_argument *argument, const bvl_inputs *in,
                            bvl_error *err) {
    char found[96], expected[96];
    bvl_declared shape = {.rank = argument->rank};
    for (int i = 0; i < argument->rank; i++) shape.sizes[i].count = argument->shape[i];
    const bool picture = d->rank == 4; /* which is most often wrong in its type too, so that is said */
    return bvl_fail(err, BVL_INVALID, "%s: found %s%s%s, expected %s%s", d->name, picture ? "" : "shape ",
                    format(found, sizeof found, &shape, NULL), picture ? " float32" : "",
                    format(expected, sizeof expected, d, in), picture ? " float32" : "");
}

/* Takes one size, which is the call's where nothing said it before; false where it is another. */
static bool take_size(bvl_inputs *in, bvl_size size, int64_t n) {
    const int64_t wanted = known(in, size);
    if (wanted >= 0) return n == wanted;
    switch (size.kind) {
        case BVL_AT_MOST: return n >= 1 && n <= size.count;
        case BVL_ITEMS: in->B = n; return true;
        case BVL_PATCHES: in->patches = n; return n >= 1 && n <= 1 << 20;
        case BVL_FRAMES:
            in->frames = n;
            in->patches = (n + size.count - 1) / size.count;
            return n >= 1 && n <= 1 << 24;
        case BVL_HEIGHT: in->grid_height = n / size.count; return n >= size.count && n <= 1 << 15;
        case BVL_WIDTH: in->grid_width = n / size.count; return n >= size.count && n <= 1 << 15;
        case BVL_TOKENS: in->L = n; return true;
        case BVL_ALL_TOKENS: in->L = n - in->past; return n >= in->past;
        default:
            if (n < 1 || n > 1 << 20) return false;
            in->feature_rows = n;
            if (size.kind == BVL_TOKENS_AFTER) in->L = size.count + n;
            return true;
    }
}

bvl_status bvl_inputs_take(bvl_inputs *in, const bvl_declared *declared, const bvl_argument *arguments,
                           bvl_error *err) {
    for (int i = 0; i < BVL_INPUT_COUNT; i++) {
        const bvl_declared *d = &declared[i];
        if (!arguments[i].data) continue;
        const bvl_inputs before = *in;
        bool same = d->rank == arguments[i].rank;
        for (int k = 0; same && k < d->rank; k++) same = take_size(in, d->sizes[k], arguments[i].shape[k]);
        if (!same) return misshapen(d, &arguments[i], &before, err);
    }
    in->pixel_values = arguments[BVL_PIXEL_VALUES].data;
    in->height = arguments[BVL_PIXEL_VALUES].shape[2];
    in->width = arguments[BVL_PIXEL_VALUES].shape[3];
    if (in->grid_height) in->patches = in->grid_height * in->grid_width;
    in->spatial_shapes = arguments[BVL_SPATIAL_SHAPES].data;
    in->pixel_attention_mask = arguments[BVL_PIXEL_ATTENTION_MASK].data;
    in->num_frames = arguments[BVL_NUM_FRAMES].data;
    in->is_longer = arguments[BVL_IS_LONGER].data;
    in->features = arguments[BVL_FEATURES].data;
    in->input_ids = arguments[BVL_INPUT_IDS].data;
    in->attention_mask = arguments[BVL_ATTENTION_MASK].data;
    in->position_ids = arguments[BVL_POSITION_IDS].data;
    in->token_type_ids = arguments[BVL_TOKEN_TYPE_IDS].data;
    return BVL_OK;
}

/* Whether the contexts and the cache of a call are what the program's blocks attend to. */
static bvl_status check_state(const bvl_program *p, const bvl_inputs *in, bvl_error *err) {
    const bvl_context_shape *s = &p->takes;
    for (int64_t i = 0; i < in->B && in->contexts; i++) {
        const bvl_context *c = in->contexts[i];
        if (c->kernels != p->kernels || c->shape.layers != s->layers || c->shape.heads != s->heads ||
            c->shape.hd != s->hd || c->shape.bf16 != s->bf16)
            return bvl_fail(
                err, BVL_INVALID,
                "contexts[%lld]: %lld layers of %lld heads of %lld, expected %lld of %lld of %lld, "
                "made by the same model",
                (long long)i, (long long)c->shape.layers, (long long)c->shape.heads, (long long)c->shape.hd,
                (long long)s->layers, (long long)s->heads, (long long)s->hd);
    }
    const bvl_cache *cache = in->cache;
    if (!cache) return BVL_OK;
    if (p->uncached)
        return bvl_fail(err, BVL_INVALID, "cache: given to a program whose blocks do not all use one");
    if (cache->program != p || cache->B != in->B)
        return bvl_fail(err, BVL_INVALID, "cache: of %lld items%s, expected %lld of this model",
                        (long long)cache->B, cache->program == p ? "" : " of another model",
                        (long long)in->B);
    if (in->L > cache->capacity - cache->length)
        return bvl_fail(err, BVL_INVALID, "cache: room for %lld tokens, found %lld more after %lld",
                        (long long)cache->capacity, (long long)in->L, (long long)cache->length);
    return BVL_OK;
}

/* Whether the patches of every picture make whole squares, where some slot holds these. */
static bvl_status check_squares(const bvl_program *p, const bvl_inputs *in, bvl_error *err) {
    for (int s = 0; s < p->slot_count; s++) {
        const int64_t side = p->slots[s].rows;
        for (int64_t b = 0; p->slots[s].kind == BVL_POOLED_ROWS && b < in->B; b++) {
            int64_t rows, cols;
            bvl_grid_of(in, b, &rows, &cols);
            if (rows < side || cols < side || rows % side || cols % side)
                return bvl_fail(err, BVL_INVALID,
                                "spatial_shapes[%lld]: found %lld x %lld patches, expected multiples of %lld",
                                (long long)b, (long long)rows, (long long)cols, (long long)side);
        }
    }
    return BVL_OK;
}

/* Whether every picture has patches, which fit, have a position and are those that a mask keeps. */
static bvl_status check_patches(const bvl_inputs *in, int64_t below, bvl_error *err) {
    for (int64_t b = 0; b < in->B && in->spatial_shapes; b++) {
        const int64_t rows = in->spatial_shapes[2 * b], cols = in->spatial_shapes[2 * b + 1], N = in->patches;
        if (rows < 1 || cols < 1 || rows > N || cols > N || rows * cols > N)
            return bvl_fail(err, BVL_INVALID,
                            "spatial_shapes[%lld]: found %lld x %lld patches, expected 1 to %lld in all",
                            (long long)b, (long long)rows, (long long)cols, (long long)N);
        if (below && BVL_MAX(rows, cols) >= below)
            return bvl_fail(
                err, BVL_INVALID,
                "spatial_shapes[%lld]: found %lld x %lld patches, expected at most %lld a side (its "
                "positions)",
                (long long)b, (long long)rows, (long long)cols, (long long)below - 1);
        const int64_t *mask = in->pixel_attention_mask ? in->pixel_attention_mask + b * N : NULL;
        for (int64_t i = 0; mask && i < N; i++)
            if ((mask[i] != 0) != (i < rows * cols))
                return bvl_fail(err, BVL_INVALID,
                                "pixel_attention_mask[%lld, %lld]: found %lld, expected 1 for the first %lld "
                                "alone, as spatial_shapes says",
                                (long long)b, (long long)i, (long long)mask[i], (long long)(rows * cols));
    }
    return BVL_OK;
}

static bvl_status check_frames(const bvl_inputs *in, bvl_error *err) {
    for (int64_t b = 0; b < in->B && in->num_frames; b++)
        if (in->num_frames[b] < 1 || in->num_frames[b] > in->frames)
            return bvl_fail(err, BVL_INVALID, "num_frames[%lld]: found %lld, expected 1 to %lld",
                            (long long)b, (long long)in->num_frames[b], (long long)in->frames);
    return BVL_OK;
}

/* Whether the placeholders of every item are as many as its features, or those of all where these are flat.
 */
static bvl_status check_placeholders(const bvl_program *p, const bvl_inputs *in, bvl_error *err) {
    int64_t all = 0;
    for (int64_t b = 0; b < in->B && in->features && in->input_ids; b++) {
        int64_t count = 0;
        for (int64_t t = 0; t < in->L; t++) count += in->input_ids[b * in->L + t] == p->feature_token;
        all += count;
        if (!p->flat_features && count != in->feature_rows)
            return bvl_fail(
                err, BVL_INVALID,
                "input_ids: row %lld has %lld placeholders (id %lld), expected %lld, one for each "
                "row of features",
                (long long)b, (long long)count, (long long)p->feature_token, (long long)in->feature_rows);
    }
    if (p->flat_features && in->features && all != in->feature_rows)
        return bvl_fail(
            err, BVL_INVALID,
            "input_ids: found %lld placeholders (id %lld), expected %lld, one for each row of features",
            (long long)all, (long long)p->feature_token, (long long)in->feature_rows);
    return BVL_OK;
}

/* Whether ids [B, L], or several of each token, of a declared input, or NULL, are all among those it counts.
 */
static bvl_status check_ids(const bvl_declared *d, const int64_t *ids, const bvl_inputs *in, const char *what,
                            bvl_error *err) {
    const int64_t each = d->rank == 3 ? d->sizes[2].count : 1;
    for (int64_t i = 0; ids && d->below && i < in->B * in->L * each; i++)
        if (ids[i] < 0 || ids[i] >= d->below)
            return bvl_fail(err, BVL_INVALID, "%s[%lld, %lld]: %lld, expected 0 to %lld%s", d->name,
                            (long long)(i / each / in->L), (long long)(i / each % in->L), (long long)ids[i],
                            (long long)d->below - 1, what);
    return BVL_OK;
}

static bvl_status check_required(const bvl_declared *d, const void *data, bvl_error *err) {
    char expected[96];
    if (data || !d->required) return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "%s: not given, expected %s %s", d->name,
                    format(expected, sizeof expected, d, NULL), d->integers ? "integers" : "float32");
}

bvl_status bvl_inputs_check(const bvl_program *p, const bvl_inputs *in, bvl_error *err) {
    const bvl_declared *d = p->declared;
    if (in->B < 1) return bvl_fail(err, BVL_INVALID, "the batch is empty: expected at least one item");
    if (check_state(p, in, err) != BVL_OK ||
        check_required(&d[BVL_PIXEL_VALUES], in->pixel_values, err) != BVL_OK ||
        check_required(&d[BVL_SPATIAL_SHAPES], in->spatial_shapes, err) != BVL_OK ||
        check_required(&d[BVL_NUM_FRAMES], in->num_frames, err) != BVL_OK ||
        check_required(&d[BVL_IS_LONGER], in->is_longer, err) != BVL_OK ||
        check_required(&d[BVL_FEATURES], in->features, err) != BVL_OK)
        return err->status;
    for (int s = 0; s < p->slot_count; s++) {
        const bvl_row_kind kind = p->slots[s].kind;
        if (kind == BVL_TEXT_ROWS && !d[BVL_ATTENTION_MASK].rank)
            return bvl_fail(err, BVL_INVALID, "slot %s has a text's rows, and the program takes no text",
                            p->slots[s].name);
        if (bvl_rows_vary(&p->slots[s]) && !in->patches)
            return bvl_fail(err, BVL_INVALID, "slot %s has rows of patches, and the program takes none",
                            p->slots[s].name);
    }
    const bool ids = d[BVL_INPUT_IDS].rank;
    if (p->queries && !in->contexts && !(ids && p->queries_before_text))
        return bvl_fail(err, BVL_INVALID, "contexts: not given, expected one for each item");
    const bool queries_alone = p->queries && in->contexts && !in->input_ids && in->L == 0;
    if (ids && !queries_alone) {
        const int64_t most = d[BVL_POSITION_IDS].below - in->past;
        if (check_required(&d[BVL_INPUT_IDS], in->input_ids, err) != BVL_OK) return err->status;
        if (in->L < 1 || in->L > most)
            return bvl_fail(err, BVL_INVALID, "input_ids: %lld tokens, expected 1 to %lld (its positions)",
                            (long long)in->L, (long long)most);
    }
    if (check_ids(&d[BVL_INPUT_IDS], in->input_ids, in, " (the vocabulary)", err) != BVL_OK ||
        check_ids(&d[BVL_POSITION_IDS], in->position_ids, in, "", err) != BVL_OK ||
        check_ids(&d[BVL_TOKEN_TYPE_IDS], in->token_type_ids, in, "", err) != BVL_OK)
        return err->status;
    if (check_patches(in, d[BVL_SPATIAL_SHAPES].below, err) != BVL_OK ||
        check_squares(p, in, err) != BVL_OK || check_frames(in, err) != BVL_OK)
        return err->status;
    return check_placeholders(p, in, err);
}
