/* cpu.h: what this processor can run, and the level in use. */
#ifndef BVL_CPU_H
#define BVL_CPU_H

#include "core.h"

/* Each level has all of the one it is built on; they are no ladder: avx_vnni is avx2's, the rest avx512's. */
typedef enum {
    BVL_ISA_BASE = 0,
    BVL_ISA_AVX2,
    BVL_ISA_AVX_VNNI, /* int8 in 256 bits: PCs without AVX-512 */
    BVL_ISA_AVX512,
    BVL_ISA_AVX512_VNNI,
    BVL_ISA_AVX512_BF16, /* and VNNI */
    BVL_ISA_AMX,         /* bfloat16 and int8 tiles, and all above */
    BVL_ISA_COUNT
} bvl_isa;

extern const char *const bvl_isa_names[BVL_ISA_COUNT];

/* Whether the processor and the operating system support a level. */
bool bvl_cpu_supports(bvl_isa isa);

/* Whether it pays: on Intel's processors dpbf16ps runs at half the rate of float32. */
bool bvl_cpu_prefers(bvl_isa isa);

/* Name of the processor as cpuid gives it, for show_config(). */
const char *bvl_cpu_name(void);

/* Processors this process may use: affinity, bounded by the cgroup's quota. At least 1. */
int bvl_cpu_count(void);

/* Bytes of one core's second-level cache (1 MiB when unknown). */
int64_t bvl_cpu_l2_bytes(void);

#endif
