/* peak.c: what this machine can do: float32 fused multiply-adds per second on all its threads, from a loop that
 * touches registers only. Build and run: gcc -O2 -fopenmp -march=native peak.c -o peak && ./peak THREADS
 */
#include <immintrin.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
typedef __m512 vec;
#define WIDTH 16
#define SET _mm512_set1_ps
#define FMA _mm512_fmadd_ps
#define CHAINS 28
#elif defined(__AVX2__)
typedef __m256 vec;
#define WIDTH 8
#define SET _mm256_set1_ps
#define FMA _mm256_fmadd_ps
#define CHAINS 12
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int main(int argc, char **argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : omp_get_max_threads();
    const long rounds = 20000000;
    double best = 0;
    for (int attempt = 0; attempt < 3; attempt++) {
        float sink = 0;
        const double start = now();
#pragma omp parallel num_threads(threads) reduction(+ : sink)
        {
            vec c[CHAINS], a = SET(0.999f), b = SET(1e-3f);
            for (int i = 0; i < CHAINS; i++) c[i] = SET((float)i);
            for (long r = 0; r < rounds; r++) {
#pragma GCC unroll 32
                for (int i = 0; i < CHAINS; i++) c[i] = FMA(c[i], a, b);
                __asm__ volatile("" : "+x"(a));
            }
            for (int i = 0; i < CHAINS; i++) sink += ((float *)&c[i])[0];
        }
        const double gflops = 2e-9 * WIDTH * CHAINS * (double)rounds * threads / (now() - start);
        if (gflops > best && sink != 1) best = gflops;
    }
    printf("%.1f\n", best);
    return 0;
}
