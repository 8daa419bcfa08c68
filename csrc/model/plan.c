/* plan.c: what a call would do, told instead of done: a line for each phase. */
#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "../arena.h"

enum { LONGEST = 512, ROOM = 4096 };

bool bvl_plan_line(bvl_plan *plan, const char *format, ...) {
    char line[LONGEST];
    va_list args;
    if (!plan) return false;
    va_start(args, format);
    const int size = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    const size_t length = BVL_MIN((size_t)BVL_MAX(size, 0), sizeof line - 1);
    if (plan->used + length + 2 > plan->room) {
        char *text = bvl_alloc(2 * plan->room + ROOM);
        plan->failed = plan->failed || !text;
        if (!text) return true;
        if (plan->text) memcpy(text, plan->text, plan->used);
        bvl_free(plan->text);
        plan->text = text;
        plan->room = 2 * plan->room + ROOM;
    }
    memcpy(plan->text + plan->used, line, length);
    plan->used += length;
    plan->text[plan->used++] = '\n';
    plan->text[plan->used] = 0;
    return true;
}
