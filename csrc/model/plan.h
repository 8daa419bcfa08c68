/* plan.h: what a call would do, as text. */
#ifndef BVL_PLAN_H
#define BVL_PLAN_H

#include "../core.h"

typedef struct {
    char *text; /* lines; NULL before the first; bvl_free */
    size_t used, room;
    bool failed; /* a line did not fit in memory */
} bvl_plan;

/* Adds a line, as printf; false where there is no plan: then what it says is to be done. */
bool bvl_plan_line(bvl_plan *plan, const char *format, ...);

#endif
