/* dispatch.c: which kernel table is in use. Compiled without any -m flag. */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

const char *const bvl_activation_names[BVL_ACT_COUNT] = {"none", "quick_gelu", "gelu", "gelu_pytorch_tanh",
                                                         "relu", "relu6",      "tanh", "silu"};

const char *const bvl_precision_names[BVL_PRECISION_COUNT] = {"float32", "bfloat16", "int8", "bfloat16x3"};

/* BVL_LEVELS is LEVEL(avx2, AVX2) ... for each level that was built; setup.py gives it. */
#define LEVEL(name, NAME) extern const bvl_kernels bvl_kernels_##name;
BVL_LEVELS
#undef LEVEL
#define LEVEL(name, NAME) [BVL_ISA_##NAME] = &bvl_kernels_##name,
static const bvl_kernels *const levels[BVL_ISA_COUNT] = {BVL_LEVELS};
#undef LEVEL

static _Atomic(const bvl_kernels *) active;
static _Atomic(const char *) reason;

bool bvl_kernels_usable(bvl_isa isa) {
    return levels[isa] && bvl_cpu_supports(isa);
}

bvl_isa bvl_kernels_best(void) {
    int isa = BVL_ISA_COUNT - 1;
    while (isa > 0 && !(bvl_kernels_usable((bvl_isa)isa) && bvl_cpu_prefers((bvl_isa)isa))) isa--;
    return (bvl_isa)isa;
}

const bvl_kernels *bvl_kernels_active(void) {
    return atomic_load(&active);
}

const char *bvl_kernels_reason(void) {
    return atomic_load(&reason);
}

/* "base, avx2, ...": the levels that can be used here. */
static const char *usable_names(char *text, size_t size) {
    size_t used = 0;
    for (int isa = 0; isa < BVL_ISA_COUNT && used < size; isa++)
        if (bvl_kernels_usable((bvl_isa)isa))
            used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", bvl_isa_names[isa]);
    return text;
}

bvl_status bvl_kernels_select(const char *name, bvl_error *err) {
    char names[128];
    const char *why = "set_isa";
    if (!name) {
        name = getenv("BEYONDVL_ISA");
        why = "BEYONDVL_ISA";
    }
    if (!name || !*name) {
        atomic_store(&active, levels[bvl_kernels_best()]);
        atomic_store(&reason, "detected");
        return BVL_OK;
    }
    for (int isa = 0; isa < BVL_ISA_COUNT; isa++) {
        if (strcmp(name, bvl_isa_names[isa]) != 0 || !bvl_kernels_usable((bvl_isa)isa)) continue;
        atomic_store(&active, levels[isa]);
        atomic_store(&reason, why);
        return BVL_OK;
    }
    return bvl_fail(err, BVL_INVALID,
                    "%s: found instruction set '%s', expected one that this machine has: %s", why, name,
                    usable_names(names, sizeof names));
}
