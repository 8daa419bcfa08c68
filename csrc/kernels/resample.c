/* resample.c: Pillow's 8-bit resampling, the two passes; compiled once per instruction set.
 *
 * An output byte is clamp((2^21 + sum_t x[t] w[t]) >> 22) with whole weights of 22 fraction bits, in int32.
 * All sums here are exact, so every level gives the same bytes. Taps go in groups of four, the last one
 * padded with zero weights; a group's weights are four words in the form its level multiplies by:
 *
 *   VNNI   w = a + 2^8 b + 2^16 c with signed bytes: words aaaa, bbbb, cccc over the four taps
 *
 *   AVX2   w = 2^11 h + l with l in [0, 2^11): words hh, hh, ll, ll of 16 bits
 *
 *   base   the weights themselves
 */
#include "level.h"

#include <string.h>

#include "dot.h"

enum { BITS = BVL_RESAMPLE_BITS, HALF = 1 << (BITS - 1) };

BVL_INLINE BVL_UNUSED uint8_t to_byte(int32_t sum) {
    const int32_t v = sum >> BITS;
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

#if defined(__AVX2__)
#include <immintrin.h>

#if INT8_STEP == 4 /* VNNI, here in 256 bits */
BVL_INLINE __m256i dot4(__m256i acc, __m256i u, __m256i s) {
#if defined(V_DPBUSD)
    return V_DPBUSD(acc, u, s);
#else
    return _mm256_dpbusd_epi32(acc, u, s);
#endif
}

void BVL_NAME(bvl_resample_pack)(int32_t *words, const int32_t *weights) {
    int8_t digits[3][4];
    for (int t = 0; t < 4; t++) {
        int32_t w = weights[t];
        for (int d = 0; d < 3; d++) {
            digits[d][t] = (int8_t)(w & 255);
            w = (w - digits[d][t]) / 256;
        }
    }
    memcpy(words, digits, sizeof digits);
    words[3] = 0;
}

typedef struct {
    __m256i a, b, c;
} sums;

BVL_INLINE sums zero_sums(void) {
    const __m256i z = _mm256_setzero_si256();
    return (sums){z, z, z};
}
/* x: in each 32-bit lane the four taps of one output */
BVL_INLINE void add_group(sums *s, __m256i x, const int32_t *w) {
    s->a = dot4(s->a, x, _mm256_set1_epi32(w[0]));
    s->b = dot4(s->b, x, _mm256_set1_epi32(w[1]));
    s->c = dot4(s->c, x, _mm256_set1_epi32(w[2]));
}
BVL_INLINE __m256i total(const sums *s) {
    const __m256i high = _mm256_add_epi32(_mm256_slli_epi32(s->b, 8), _mm256_slli_epi32(s->c, 16));
    return _mm256_add_epi32(_mm256_add_epi32(s->a, high), _mm256_set1_epi32(HALF));
}
#else
void BVL_NAME(bvl_resample_pack)(int32_t *words, const int32_t *weights) {
    int16_t parts[2][4];
    for (int t = 0; t < 4; t++) {
        parts[1][t] = (int16_t)(weights[t] & 2047);
        parts[0][t] = (int16_t)((weights[t] - parts[1][t]) / 2048);
    }
    memcpy(words, parts, sizeof parts);
}

typedef struct {
    __m256i h, l;
} sums;

BVL_INLINE sums zero_sums(void) {
    return (sums){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
/* x: in each 32-bit lane the four taps of one output */
BVL_INLINE void add_group(sums *s, __m256i x, const int32_t *w) {
    /* a lane's bytes t0 t1 t2 t3 as 16-bit pairs t0 t1 and t2 t3 */
    const __m256i order = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1,
                                           -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i first = _mm256_shuffle_epi8(x, order);
    const __m256i second = _mm256_shuffle_epi8(_mm256_srli_epi32(x, 16), order);
    s->h = _mm256_add_epi32(s->h, _mm256_madd_epi16(first, _mm256_set1_epi32(w[0])));
    s->h = _mm256_add_epi32(s->h, _mm256_madd_epi16(second, _mm256_set1_epi32(w[1])));
    s->l = _mm256_add_epi32(s->l, _mm256_madd_epi16(first, _mm256_set1_epi32(w[2])));
    s->l = _mm256_add_epi32(s->l, _mm256_madd_epi16(second, _mm256_set1_epi32(w[3])));
}
BVL_INLINE __m256i total(const sums *s) {
    return _mm256_add_epi32(_mm256_add_epi32(_mm256_slli_epi32(s->h, 11), s->l), _mm256_set1_epi32(HALF));
}
#endif

/* Two lines, one in each half: a lane is one channel of one output pixel. */
BVL_INLINE __m256i load_group(const uint8_t *x0, const uint8_t *x1, __m256i order) {
    const __m128i a = _mm_loadu_si128((const void *)x0), b = _mm_loadu_si128((const void *)x1);
    return _mm256_shuffle_epi8(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1), order);
}

BVL_INLINE void store_pixels(uint8_t *y0, uint8_t *y1, __m256i sum, const int channels) {
    const __m256i v = _mm256_srai_epi32(sum, BITS), zero = _mm256_setzero_si256();
    const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(v, zero), zero);
    const int a = _mm_cvtsi128_si32(_mm256_castsi256_si128(bytes));
    const int b = _mm_cvtsi128_si32(_mm256_extracti128_si256(bytes, 1));
    memcpy(y0, &a, (size_t)channels);
    memcpy(y1, &b, (size_t)channels);
}

/* Up to 8 lines at once: `pairs` accumulators of two lines each share the weights. */
BVL_INLINE void lines_of(uint8_t *const *y, const uint8_t *const *x, const bvl_taps *taps, int64_t count,
                         const int channels, const int pairs) {
    int8_t order[32];
    for (int lane = 0; lane < 8; lane++)
        for (int t = 0; t < 4; t++)
            order[4 * lane + t] = (int8_t)(lane % 4 < channels ? lane % 4 + t * channels : -1);
    const __m256i shuffle = _mm256_loadu_si256((const void *)order);
    for (int64_t i = 0; i < count; i++) {
        const int32_t *w = taps->words + i * taps->groups * 4;
        const int64_t begin = taps->begin[i] * channels, groups = (taps->length[i] + 3) / 4;
        sums s[4];
#pragma GCC unroll 4
        for (int p = 0; p < pairs; p++) s[p] = zero_sums();
        for (int64_t g = 0; g < groups; g++) {
            const int64_t at = begin + g * 4 * channels;
#pragma GCC unroll 4
            for (int p = 0; p < pairs; p++)
                add_group(&s[p], load_group(x[2 * p] + at, x[2 * p + 1] + at, shuffle), w + 4 * g);
        }
#pragma GCC unroll 4
        for (int p = 0; p < pairs; p++)
            store_pixels(y[2 * p] + i * channels, y[2 * p + 1] + i * channels, total(&s[p]), channels);
    }
}

BVL_INLINE void horizontal(uint8_t *y, int64_t ldy, const uint8_t *x, int64_t ldx, int64_t rows,
                           const bvl_taps *taps, int64_t count, const int channels) {
    uint8_t *out[8];
    const uint8_t *in[8];
    for (int64_t r = 0; r < rows; r += 8) {
        const int64_t left = BVL_MIN(8, rows - r);
        for (int64_t k = 0; k < 8; k++) { /* missing lines repeat the last one */
            out[k] = y + (r + BVL_MIN(k, left - 1)) * ldy;
            in[k] = x + (r + BVL_MIN(k, left - 1)) * ldx;
        }
        if (left > 2)
            lines_of(out, in, taps, count, channels, 4);
        else
            lines_of(out, in, taps, count, channels, 1);
    }
}

/* 32 columns of four lines, a lane per column in the order the unpacking gives, and back. */
void BVL_NAME(bvl_resample_vertical)(uint8_t *y, const uint8_t *const *rows, const int32_t *words,
                                     int64_t groups, int64_t n) {
    uint8_t tail[4][32], last[32];
    for (int64_t j = 0; j < n; j += 32) {
        const int64_t width = BVL_MIN(32, n - j);
        sums s[4] = {zero_sums(), zero_sums(), zero_sums(), zero_sums()};
        for (int64_t g = 0; g < groups; g++) {
            __m256i x[4];
            for (int t = 0; t < 4; t++) {
                const uint8_t *line = rows[4 * g + t] + j;
                if (width < 32) line = memcpy(tail[t], line, (size_t)width);
                x[t] = _mm256_loadu_si256((const void *)line);
            }
            const __m256i a = _mm256_unpacklo_epi8(x[0], x[1]), b = _mm256_unpackhi_epi8(x[0], x[1]);
            const __m256i c = _mm256_unpacklo_epi8(x[2], x[3]), d = _mm256_unpackhi_epi8(x[2], x[3]);
            add_group(&s[0], _mm256_unpacklo_epi16(a, c), words + 4 * g);
            add_group(&s[1], _mm256_unpackhi_epi16(a, c), words + 4 * g);
            add_group(&s[2], _mm256_unpacklo_epi16(b, d), words + 4 * g);
            add_group(&s[3], _mm256_unpackhi_epi16(b, d), words + 4 * g);
        }
        __m256i v[4];
        for (int k = 0; k < 4; k++) v[k] = _mm256_srai_epi32(total(&s[k]), BITS);
        const __m256i bytes =
            _mm256_packus_epi16(_mm256_packus_epi32(v[0], v[1]), _mm256_packus_epi32(v[2], v[3]));
        _mm256_storeu_si256((void *)last, bytes);
        memcpy(y + j, last, (size_t)width);
    }
}

#else
void BVL_NAME(bvl_resample_pack)(int32_t *words, const int32_t *weights) {
    memcpy(words, weights, 4 * sizeof *words);
}

BVL_INLINE void horizontal(uint8_t *y, int64_t ldy, const uint8_t *x, int64_t ldx, int64_t rows,
                           const bvl_taps *taps, int64_t count, const int channels) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < count; i++) {
            const uint8_t *line = x + r * ldx + taps->begin[i] * channels;
            const int32_t *w = taps->words + i * taps->groups * 4;
            int32_t sum[4] = {HALF, HALF, HALF, HALF};
            for (int64_t t = 0; t < taps->length[i]; t++)
                for (int c = 0; c < channels; c++) sum[c] += line[t * channels + c] * w[t];
            for (int c = 0; c < channels; c++) y[r * ldy + i * channels + c] = to_byte(sum[c]);
        }
}

void BVL_NAME(bvl_resample_vertical)(uint8_t *y, const uint8_t *const *rows, const int32_t *words,
                                     int64_t groups, int64_t n) {
    enum { BLOCK = 128 };
    int32_t sum[BLOCK];
    for (int64_t j = 0; j < n; j += BLOCK) {
        const int64_t width = BVL_MIN(BLOCK, n - j);
        for (int64_t i = 0; i < width; i++) sum[i] = HALF;
        for (int64_t t = 0; t < 4 * groups; t++)
            for (int64_t i = 0; i < width; i++) sum[i] += rows[t][j + i] * words[t];
        for (int64_t i = 0; i < width; i++) y[j + i] = to_byte(sum[i]);
    }
}
#endif

void BVL_NAME(bvl_resample_horizontal)(uint8_t *y, int64_t ldy, const uint8_t *x, int64_t ldx, int64_t rows,
                                       const bvl_taps *taps, int64_t count, int64_t channels) {
    switch (channels) {
        case 1: horizontal(y, ldy, x, ldx, rows, taps, count, 1); break;
        case 2: horizontal(y, ldy, x, ldx, rows, taps, count, 2); break;
        case 3: horizontal(y, ldy, x, ldx, rows, taps, count, 3); break;
        default: horizontal(y, ldy, x, ldx, rows, taps, count, 4); break;
    }
}
