/* cpu.c: cpuid and xgetbv -> instruction-set level; affinity and cgroup -> usable processors.
 *
 * A feature bit alone is not enough: the operating system must save the wider registers
 * (OSXSAVE and XCR0), so both are read. Compiled without any -m flag.
 */
#define _GNU_SOURCE
#include "cpu.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const bvl_isa_names[BVL_ISA_COUNT] = {"base", "avx2", "avx512"};

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t read_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

bvl_isa bvl_cpu_best(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return BVL_ISA_BASE;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave || !fma || !f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return BVL_ISA_BASE;
    const uint64_t xcr0 = read_xcr0();
    const bool avx2 = (b & (1u << 5)) && (xcr0 & 0x6) == 0x6;
    if (!avx2) return BVL_ISA_BASE;
    const unsigned wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F DQ BW VL */
    const bool avx512 = (b & wanted) == wanted && (xcr0 & 0xe6) == 0xe6;
    return avx512 ? BVL_ISA_AVX512 : BVL_ISA_AVX2;
}

const char *bvl_cpu_name(void) {
    static char name[49];
    unsigned regs[12];
    for (unsigned i = 0; i < 3; i++) {
        unsigned *r = regs + 4 * i;
        if (!__get_cpuid(0x80000002u + i, r, r + 1, r + 2, r + 3)) return "x86-64";
    }
    memcpy(name, regs, 48);
    return name;
}
#else
bvl_isa bvl_cpu_best(void) {
    return BVL_ISA_BASE;
}
const char *bvl_cpu_name(void) {
    return "unknown";
}
#endif

/* Whole processors granted by a "quota period" pair, 0 when there is no limit. */
static int quota_to_cpus(double quota, double period) {
    if (quota <= 0 || period <= 0) return 0;
    const int whole = (int)(quota / period);
    return whole < 1 ? 1 : whole;
}

static int cgroup_cpus(void) {
    double quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "r");
    if (f) { /* version 2: "max 100000" or "200000 100000" */
        const int n = fscanf(f, "%lf %lf", &quota, &period);
        fclose(f);
        return n == 2 ? quota_to_cpus(quota, period) : 0;
    }
    if (!(f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"))) return 0;
    int n = fscanf(f, "%lf", &quota);
    fclose(f);
    if (n != 1 || !(f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r"))) return 0;
    n = fscanf(f, "%lf", &period);
    fclose(f);
    return n == 1 ? quota_to_cpus(quota, period) : 0;
}

int bvl_cpu_count(void) {
    int count = 0;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
    if (count < 1) count = (int)sysconf(_SC_NPROCESSORS_ONLN);
    const int quota = cgroup_cpus();
    if (quota > 0 && quota < count) count = quota;
    return count < 1 ? 1 : count;
}

int64_t bvl_cpu_l2_bytes(void) {
    const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return bytes >= 128 * 1024 ? bytes : 1 << 20;
}
