/* build.c: what operations check and copy while they are built: shapes, whole numbers, orders of rows, norms.
 */
#include <math.h>
#include <stdio.h>

#include "../arena.h"
#include "ops.h"

static void format_shape(char *text, size_t size, int rank, const int64_t *shape) {
    size_t used = (size_t)snprintf(text, size, "(");
    for (int i = 0; i < rank && used < size; i++) {
        const char *sep = i ? ", " : "";
        used +=
            (size_t)(shape[i] < 0 ? snprintf(text + used, size - used, "%s*", sep)
                                  : snprintf(text + used, size - used, "%s%lld", sep, (long long)shape[i]));
    }
    if (used < size) snprintf(text + used, size - used, ")");
}

bvl_status bvl_expect(const bvl_op *op, const bvl_build *build, int weight, int rank, int64_t d0, int64_t d1,
                      int64_t d2, int64_t d3, bvl_error *err) {
    const bvl_array *a = &build->weights[weight];
    const int64_t wanted[BVL_MAX_RANK] = {d0, d1, d2, d3};
    bool same = a->data && a->rank == rank;
    for (int i = 0; same && i < rank; i++) same = wanted[i] < 0 ? a->shape[i] >= 1 : a->shape[i] == wanted[i];
    if (same) return BVL_OK;
    char found[96] = "nothing", expected[96];
    if (a->data) format_shape(found, sizeof found, a->rank, a->shape);
    format_shape(expected, sizeof expected, rank, wanted);
    return bvl_fail(err, BVL_INVALID, "%s: %s: found %s, expected shape %s", op->name, op->weights[weight],
                    found, expected);
}

bvl_status bvl_expect_whole(const bvl_op *op, const bvl_build *build, int param, int64_t least, int64_t most,
                            int64_t *out, bvl_error *err) {
    const double value = build->params[param];
    if (!(value >= (double)least && value <= (double)most) || value != floor(value))
        return bvl_fail(err, BVL_INVALID, "%s: %s: found %g, expected a whole number from %lld to %lld",
                        op->name, op->params[param], value, (long long)least, (long long)most);
    *out = (int64_t)value;
    return BVL_OK;
}

bvl_status bvl_table_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t count,
                           int64_t below, bool once, int32_t **table, bvl_error *err) {
    void *memory;
    bool filled;
    if (bvl_expect(r->op, b, at, 1, count, 0, 0, 0, err) != BVL_OK ||
        bvl_store_take(&p->store, (size_t)count * sizeof **table, &memory, &filled, err) != BVL_OK)
        return err->status;
    uint8_t *seen = once ? bvl_alloc((size_t)below) : NULL;
    if (once && !seen) return bvl_fail(err, BVL_NO_MEMORY, "no memory for %lld rows", (long long)below);
    *table = memory;
    double value = 0;
    int64_t i = 0;
    for (; i < count; i++) { /* what is mapped from a file is checked too */
        value = filled ? (*table)[i] : (double)b->weights[at].data[i];
        if (!(value >= 0 && value < (double)below) || value != floor(value)) break;
        if (once && seen[(int64_t)value]++) break;
        if (!filled) (*table)[i] = (int32_t)value;
    }
    bvl_free(seen);
    if (i == count) return BVL_OK;
    return bvl_fail(err, BVL_INVALID, "%s: %s[%lld]: found %g, expected %s 0 to %lld%s", r->op->name,
                    r->op->weights[at], (long long)i, value, once ? "each of" : "whole numbers from",
                    (long long)below - 1, once ? " once" : "");
}

bvl_status bvl_norm_build(bvl_program *p, const bvl_record *r, const bvl_build *b, int at, int64_t D,
                          double eps, bool rms, bvl_norm *norm, bvl_error *err) {
    if (bvl_expect(r->op, b, at, 1, D, 0, 0, 0, err) != BVL_OK ||
        (!rms && bvl_expect(r->op, b, at + 1, 1, D, 0, 0, 0, err) != BVL_OK))
        return err->status;
    if (rms && b->weights[at + 1].data)
        return bvl_fail(err, BVL_INVALID, "%s: %s: given, and rms_norm has none", r->op->name,
                        r->op->weights[at + 1]);
    return bvl_norm_init(norm, &p->store, &b->weights[at], &b->weights[at + 1], eps, err);
}
