/* dispatch.c: which kernel table is in use. Compiled without any -m flag. */
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

const char *const bvl_activation_names[BVL_ACT_COUNT] = {"none", "quick_gelu", "gelu", "gelu_pytorch_tanh",
                                                         "relu", "relu6",      "tanh", "silu"};

extern const bvl_kernels bvl_kernels_base;
#if defined(BVL_HAVE_AVX2)
extern const bvl_kernels bvl_kernels_avx2;
#endif
#if defined(BVL_HAVE_AVX512)
extern const bvl_kernels bvl_kernels_avx512;
#endif

static _Atomic(const bvl_kernels *) active;
static _Atomic(const char *) reason;

const bvl_kernels *bvl_kernels_for(bvl_isa isa) {
    switch (isa) {
        case BVL_ISA_BASE: return &bvl_kernels_base;
#if defined(BVL_HAVE_AVX2)
        case BVL_ISA_AVX2: return &bvl_kernels_avx2;
#endif
#if defined(BVL_HAVE_AVX512)
        case BVL_ISA_AVX512: return &bvl_kernels_avx512;
#endif
        default: return NULL;
    }
}

const bvl_kernels *bvl_kernels_active(void) {
    return atomic_load(&active);
}

const char *bvl_kernels_reason(void) {
    return atomic_load(&reason);
}

static const bvl_kernels *best_table(void) {
    int isa = bvl_cpu_best();
    while (!bvl_kernels_for((bvl_isa)isa)) isa--; /* base always exists */
    return bvl_kernels_for((bvl_isa)isa);
}

bvl_status bvl_kernels_select(const char *name, bvl_error *err) {
    const char *why = "set_isa";
    if (!name) {
        name = getenv("BEYONDVL_ISA");
        why = "BEYONDVL_ISA";
    }
    const bvl_kernels *best = best_table();
    if (!name || !*name) {
        atomic_store(&active, best);
        atomic_store(&reason, "detected");
        return BVL_OK;
    }
    for (int isa = 0; isa < BVL_ISA_COUNT; isa++) {
        if (strcmp(name, bvl_isa_names[isa]) != 0) continue;
        const bvl_kernels *table = bvl_kernels_for((bvl_isa)isa);
        if (!table || isa > (int)best->isa)
            return bvl_fail(err, BVL_INVALID, "%s: instruction set %s: expected at most %s on this machine",
                            why, name, bvl_isa_names[best->isa]);
        atomic_store(&active, table);
        atomic_store(&reason, why);
        return BVL_OK;
    }
    return bvl_fail(err, BVL_INVALID, "%s: unknown instruction set '%s': expected base, avx2 or avx512", why,
                    name);
}
