/* cpu.h: what this processor can run, and the level in use. */
#ifndef BVL_CPU_H
#define BVL_CPU_H

#include "core.h"

typedef enum { BVL_ISA_BASE = 0, BVL_ISA_AVX2, BVL_ISA_AVX512, BVL_ISA_COUNT } bvl_isa;

extern const char *const bvl_isa_names[BVL_ISA_COUNT];

/* Highest level that both the processor and the operating system support. */
bvl_isa bvl_cpu_best(void);

/* Name of the processor as cpuid gives it, for show_config(). */
const char *bvl_cpu_name(void);

/* Processors this process may use: affinity, bounded by the cgroup's quota. At least 1. */
int bvl_cpu_count(void);

/* Bytes of one core's second-level cache (1 MiB when unknown). */
int64_t bvl_cpu_l2_bytes(void);

#endif
