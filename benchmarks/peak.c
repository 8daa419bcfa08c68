/* peak.c: what this machine can do on all its threads, from loops that touch registers only: one line per
 * unit with its rate in GFLOP/s (int8: GOP/s) and the operations per cycle and core, then the rate of reading
 * memory in GB/s. Cycles are counted by a chain of additions, one cycle each, run on the same threads; with
 * AMX beside its products, which lower the clock. "amx_..._fed": the same products when each loads its tiles
 * from the first cache, with numbers in them, which lowers it further. Build and run: gcc -O2 -fopenmp
 * -march=native peak.c -o peak && ./peak THREADS [memory], the latter for that line alone
 */
#define _GNU_SOURCE
#include <immintrin.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static int threads;
static double sink;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of `loop` on all threads, the best of 24: clocks wander. */
static double best_time(void (*loop)(long), long rounds) {
    double best = 1e30;
    for (int attempt = 0; attempt < 24; attempt++) {
        const double start = now();
#pragma omp parallel num_threads(threads)
        loop(rounds);
        const double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    return best;
}

#define ADD8(x, y)                                                                                        \
    __asm__ volatile(                                                                                     \
        "add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add %1, %0\n add " \
        "%1, %0"                                                                                          \
        : "+r"(x)                                                                                         \
        : "r"(y))

static void clock_loop(long rounds) {
    uint64_t x = 1, y = (uint64_t)rounds;
    for (long r = 0; r < rounds; r++) ADD8(x, y);
    if (x == 42) sink += 1;
}

static double hertz(void) {
    const long rounds = 20000000;
    return 8.0 * (double)rounds / best_time(clock_loop, rounds);
}

static void report(const char *name, double ops_per_round, void (*loop)(long), long rounds, double clock) {
    const double rate = ops_per_round * (double)rounds * threads / best_time(loop, rounds);
    printf("%s %.1f %.1f\n", name, rate * 1e-9, rate / threads / clock);
}

/* Independent accumulators, enough to hide a latency of six cycles of two operations: 24 where there are 32
 * registers, else twelve. */
/* clang-format off */
#define SUM(OP, R, N) OP " %%" R "14, %%" R "15, %%" R #N "\n"
#define FOUR(OP, R, A, B, C, D) SUM(OP, R, A) SUM(OP, R, B) SUM(OP, R, C) SUM(OP, R, D)
#define TWELVE(OP, R) FOUR(OP, R, 0, 1, 2, 3) FOUR(OP, R, 4, 5, 6, 7) FOUR(OP, R, 8, 9, 10, 11)
#define LOW "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
    "xmm14", "xmm15"
#if defined(__AVX512F__)
#define SUMS 24
#define ALL(OP, R) \
    TWELVE(OP, R) FOUR(OP, R, 16, 17, 18, 19) FOUR(OP, R, 20, 21, 22, 23) FOUR(OP, R, 24, 25, 26, 27)
#define USED LOW, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", \
    "xmm26", "xmm27"
#else
#define SUMS 12
#define ALL TWELVE
#define USED LOW
#endif
/* clang-format on */
#define LOOP(NAME, OP, R)                                                          \
    static void NAME(long rounds) {                                                \
        for (long r = 0; r < rounds; r++) __asm__ volatile(ALL(OP, R) : : : USED); \
    }

#if defined(__AVX512F__)
LOOP(float32, "vfmadd231ps", "zmm")
#elif defined(__AVX2__)
LOOP(float32, "vfmadd231ps", "ymm")
#endif
#if defined(__AVX512BF16__)
LOOP(bfloat16, "vdpbf16ps", "zmm")
#endif
#if defined(__AVX512VNNI__)
LOOP(int8, "vpdpbusd", "zmm")
#endif

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
/* 64 bytes as ldtilecfg reads them: eight tiles of 16 rows x 64 bytes */
static void tiles(void) {
    uint8_t config[64] = {1};
    for (int t = 0; t < 8; t++) config[16 + 2 * t] = 64, config[48 + t] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(*(uint8_t(*)[64])config) : "memory");
}
#define FOUR_PRODUCTS(OP)                                                             \
    __asm__ volatile(OP " %%tmm6, %%tmm4, %%tmm0\n" OP " %%tmm7, %%tmm4, %%tmm1\n" OP \
                        " %%tmm6, %%tmm5, %%tmm2\n" OP " %%tmm7, %%tmm5, %%tmm3" ::)
#define AMX_LOOP(NAME, OP)                                   \
    static void NAME(long rounds) {                          \
        tiles();                                             \
        for (long r = 0; r < rounds; r++) FOUR_PRODUCTS(OP); \
        __asm__ volatile("tilerelease");                     \
    }
AMX_LOOP(amx_bfloat16, "tdpbf16ps")
AMX_LOOP(amx_int8, "tdpbsud")

/* Each step loads four tiles, in the order that leaves each load the most time. */
#define FED_LOOP(NAME, OP)                                                                      \
    static void NAME(long rounds) {                                                             \
        uint8_t from[16384] __attribute__((aligned(64)));                                       \
        for (int i = 0; i < 16384; i++) from[i] = (uint8_t)(i % 2 ? 0x3f : 0x80 | i * 37);      \
        tiles();                                                                                \
        for (long r = 0; r < rounds; r++)                                                       \
            __asm__ volatile("tileloadd (%0, %1), %%tmm6\n tileloadd 1024(%0, %1), %%tmm4\n" OP \
                             " %%tmm6, %%tmm4, %%tmm0\n tileloadd 2048(%0, %1), %%tmm7\n" OP    \
                             " %%tmm7, %%tmm4, %%tmm1\n tileloadd 3072(%0, %1), %%tmm5\n" OP    \
                             " %%tmm6, %%tmm5, %%tmm2\n" OP " %%tmm7, %%tmm5, %%tmm3"           \
                             :                                                                  \
                             : "r"(from + r % 4 * 4096), "r"(64L)                               \
                             : "memory");                                                       \
        __asm__ volatile("tilerelease");                                                        \
    }
FED_LOOP(amx_bfloat16_fed, "tdpbf16ps")
FED_LOOP(amx_int8_fed, "tdpbsud")

/* 88 cycles of additions beside 64 of products: the clock is theirs, the time the additions'. */
static void amx_clock_loop(long rounds) {
    uint64_t x = 1, y = (uint64_t)rounds;
    tiles();
    for (long r = 0; r < rounds; r++) {
        FOUR_PRODUCTS("tdpbf16ps");
        for (int i = 0; i < 11; i++) ADD8(x, y);
    }
    __asm__ volatile("tilerelease");
    if (x == 42) sink += 1;
}

static double amx_hertz(void) {
    const long rounds = 2000000;
    return 88.0 * (double)rounds / best_time(amx_clock_loop, rounds);
}
#endif

static uint64_t *area;
enum { AREA_WORDS = 1 << 26 }; /* 512 MiB */

static void read_loop(long rounds) {
    const long share = AREA_WORDS / threads, begin = omp_get_thread_num() * share;
    uint64_t sum = 0;
    for (long r = 0; r < rounds; r++)
        for (long i = begin; i < begin + share; i += 8) sum += area[i];
    if (sum == 42) sink += 1;
}

static int memory(void) {
    if (!(area = malloc(AREA_WORDS * sizeof *area))) return 1;
    memset(area, 1, AREA_WORDS * sizeof *area);
    printf("memory %.1f 0\n", 8e-9 * AREA_WORDS * 2 / best_time(read_loop, 2));
    return sink == 0.123;
}

int main(int argc, char **argv) {
    threads = argc > 1 ? atoi(argv[1]) : omp_get_max_threads();
    if (argc > 2 && strcmp(argv[2], "memory") == 0) return memory();
    const double clock = hertz();
#if defined(__AVX512F__)
    report("float32", 2.0 * 16 * SUMS, float32, 4000000, clock);
#elif defined(__AVX2__)
    report("float32", 2.0 * 8 * SUMS, float32, 8000000, clock);
#endif
#if defined(__AVX512BF16__)
    report("bfloat16", 4.0 * 16 * SUMS, bfloat16, 4000000, clock);
#endif
#if defined(__AVX512VNNI__)
    report("int8", 8.0 * 16 * SUMS, int8, 4000000, clock);
#endif
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
    if (syscall(SYS_arch_prctl, 0x1023, 18) == 0) {
        const double amx_clock = amx_hertz();
        report("amx_bfloat16", 4.0 * 16384, amx_bfloat16, 2000000, amx_clock);
        report("amx_int8", 4.0 * 32768, amx_int8, 2000000, amx_clock);
        report("amx_bfloat16_fed", 4.0 * 16384, amx_bfloat16_fed, 2000000, amx_clock);
        report("amx_int8_fed", 4.0 * 32768, amx_int8_fed, 2000000, amx_clock);
    }
#endif
    return memory();
}
