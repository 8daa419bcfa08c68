/* cpu.c: cpuid and xgetbv -> instruction-set level; affinity and cgroup -> usable processors.
 *
 * A feature bit alone is not enough: the operating system must save the wider registers
 * (OSXSAVE and XCR0), so both are read. Compiled without any -m flag.
 */
#define _GNU_SOURCE
#include "cpu.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *const bvl_isa_names[BVL_ISA_COUNT] = {"base",        "avx2",        "avx_vnni", "avx512",
                                                  "avx512_vnni", "avx512_bf16", "amx"};

#if defined(__x86_64__)
#include <cpuid.h>

static uint64_t read_xcr0(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return ((uint64_t)high << 32) | low;
}

/* What cpuid says, as one set; a level asks for some of these. */
enum {
    HAS_AVX2 = 1,
    HAS_AVX512 = 2,
    HAS_AVX_VNNI = 4,
    HAS_AVX512_VNNI = 8,
    HAS_AVX512_BF16 = 16,
    HAS_AMX = 32
};

/* Whether tiles may be used: the system saves them, and Linux hands them out on request, which then holds for
 * the process and its children. */
static bool tiles_granted(unsigned bits, uint64_t xcr0) {
#if defined(BVL_EMULATED)
    (void)bits, (void)xcr0;
    return true;
#else
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned wanted = (1u << 22) | (1u << 24) | (1u << 25); /* BF16 TILE INT8 */
    return (bits & wanted) == wanted && (xcr0 & 0x60000) == 0x60000 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#endif
}

static int read_cpuid(void) {
    unsigned a, b, c, d, a1 = 0, b1, c1, d1;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const bool osxsave = c & (1u << 27), fma = c & (1u << 12), f16c = c & (1u << 29);
    if (!osxsave || !fma || !f16c || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    if (a >= 1) __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1);
    const uint64_t xcr0 = read_xcr0();
    const bool avx2 = (b & (1u << 5)) && (xcr0 & 0x6) == 0x6;
    const unsigned wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31); /* F DQ BW VL */
    if (!avx2) return 0;
    int found = HAS_AVX2 | (a1 & (1u << 4) ? HAS_AVX_VNNI : 0);
    if ((b & wanted) != wanted || (xcr0 & 0xe6) != 0xe6) return found;
    found |= HAS_AVX512 | (c & (1u << 11) ? HAS_AVX512_VNNI : 0) | (a1 & (1u << 5) ? HAS_AVX512_BF16 : 0);
#if defined(BVL_EMULATED)
    if (found & HAS_AVX512_VNNI) found |= HAS_AVX_VNNI; /* built in AVX-512's encoding then */
#endif
    return found | (tiles_granted(d, xcr0) ? HAS_AMX : 0);
}

/* Read once: under a hypervisor every cpuid is an exit to it. */
static int features(void) {
    static atomic_int known = -1;
    if (atomic_load(&known) < 0) atomic_store(&known, read_cpuid());
    return atomic_load(&known);
}

bool bvl_cpu_supports(bvl_isa isa) {
    static const int needs[BVL_ISA_COUNT] = {
        [BVL_ISA_AVX2] = HAS_AVX2,
        [BVL_ISA_AVX_VNNI] = HAS_AVX2 | HAS_AVX_VNNI,
        [BVL_ISA_AVX512] = HAS_AVX512,
        [BVL_ISA_AVX512_VNNI] = HAS_AVX512 | HAS_AVX512_VNNI,
        [BVL_ISA_AVX512_BF16] = HAS_AVX512 | HAS_AVX512_VNNI | HAS_AVX512_BF16,
        [BVL_ISA_AMX] = HAS_AVX512 | HAS_AVX512_VNNI | HAS_AVX512_BF16 | HAS_AMX};
    return (features() & needs[isa]) == needs[isa];
}

bool bvl_cpu_prefers(bvl_isa isa) {
    unsigned a, vendor[3];
    if (isa != BVL_ISA_AVX512_BF16 || !__get_cpuid(0, &a, vendor, vendor + 2, vendor + 1)) return true;
    return memcmp(vendor, "GenuineIntel", sizeof vendor) != 0;
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
bool bvl_cpu_supports(bvl_isa isa) {
    return isa == BVL_ISA_BASE;
}
bool bvl_cpu_prefers(bvl_isa isa) {
    return isa == BVL_ISA_BASE;
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

/* Of one group of version 2: "max 100000" or "200000 100000". */
static int group_cpus(const char *group) {
    char path[600];
    double quota = 0, period = 0;
    snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", group);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    const int n = fscanf(f, "%lf %lf", &quota, &period);
    fclose(f);
    return n == 2 ? quota_to_cpus(quota, period) : 0;
}

/* The least of this process's group and those it lies in; 0 without a limit. */
static int nested_cpus(void) {
    char line[512] = "";
    FILE *f = fopen("/proc/self/cgroup", "r");
    int least = 0;
    while (f && fgets(line, sizeof line, f) && strncmp(line, "0::/", 4) != 0) line[0] = 0;
    if (f) fclose(f);
    line[strcspn(line, "\n")] = 0;
    for (char *group = line[0] ? line + 3 : line;; *strrchr(group, '/') = 0) {
        const int cpus = group_cpus(group);
        if (cpus > 0 && (least == 0 || cpus < least)) least = cpus;
        if (!strchr(group, '/')) return least;
    }
}

static int cgroup_cpus(void) {
    double quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r"); /* version 1 */
    if (!f) return nested_cpus();
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
