/* spectrum.c: mel energies of frames of a sound; compiled once per instruction set.
 *
 *   X[k] = sum_n w[n] x[n] exp(-2 pi i n k / N)
 *
 *   E[m] = sum_k F[m, k] |X[k]|^2      y[m] = c log max(E[m], floor)
 *
 * or, of amplitudes, y[m] = c log(sum_k F[m, k] |X[k]| + floor).
 *
 * In double precision, as the published extractors: quiet bands lie far below what float32 resolves beside
 * loud ones. A lane of every vector is one complex signal, and holds two neighbouring frames, a + i b, whose
 * spectra part by symmetry: A[k] = (Z[k] + conj Z[N-k]) / 2, B[k] = (Z[k] - conj Z[N-k]) / 2i. So the
 * transform, of any length, has no shuffles: Stockham's, radix 4, 2, 5 or another prime (Stockham, 1966).
 * Sums and products are not fused, and every level gives the same bits.
 */
#include <math.h>

#include "level.h"

#define LANES BVL_DOUBLES
typedef double vd __attribute__((vector_size(8 * LANES)));
typedef int64_t vi __attribute__((vector_size(8 * LANES)));
typedef struct {
    vd re, im;
} vc;

BVL_INLINE vd set1(double x) {
    return x - (vd){0};
}
BVL_INLINE vd pick(vi where, vd a, vd b) {
    return (vd)((where & (vi)a) | (~where & (vi)b));
}
/* NaN stays */
BVL_INLINE vd at_least(vd x, vd least) {
    return pick(x < least, least, x);
}

BVL_INLINE vd root(vd x) {
    for (int l = 0; l < LANES; l++) x[l] = sqrt(x[l]);
    return x;
}

/* log(x) of normal x > 0: x = m 2^e with m about 1, log m = 2 atanh s by its series, s = (m - 1) / (m + 1).
 */
BVL_INLINE vd logarithm(vd x) {
    const vi one = (vi)set1(1.0), root = (vi)set1(0.7071067811865476);
    const vi e = ((vi)x - root) >> 52;
    const vd m = (vd)((vi)x - (e << 52));
    const vd s = (m - (vd)one) / (m + (vd)one), t = s * s;
    vd p = set1(1.0 / 17);
    for (int d = 15; d > 0; d -= 2) p = p * t + 1.0 / d;
    const vd y = __builtin_convertvector(e, vd) * 0.6931471805599453 + 2.0 * s * p;
    return pick(x < set1(INFINITY), y, x); /* infinity and NaN stay */
}

/* One pass: y[q + s (r p + k)] = w^(p k) sum_j x[q + s (p + m j)] exp(-2 pi i j k / r). */
static void pass(vc *y, const vc *x, const double *w, int64_t n, int64_t s, int64_t r, int64_t N) {
    const int64_t m = n / r, step = N / n;
    for (int64_t p = 0; p < m; p++)
        for (int64_t k = 0; k < r; k++) {
            const double wr = w[2 * p * k * step], wi = w[2 * p * k * step + 1];
            for (int64_t q = 0; q < s; q++) {
                vd re = {0}, im = {0};
                for (int64_t j = 0; j < r; j++) {
                    const double *c = w + 2 * (j * k % r * (N / r));
                    const vc a = x[q + s * (p + m * j)];
                    re += a.re * c[0] - a.im * c[1];
                    im += a.re * c[1] + a.im * c[0];
                }
                y[q + s * (r * p + k)] = (vc){re * wr - im * wi, re * wi + im * wr};
            }
        }
}

BVL_INLINE vc times(vc a, double re, double im) {
    return (vc){a.re * re - a.im * im, a.re * im + a.im * re};
}

static void pass2(vc *y, const vc *x, const double *w, int64_t n, int64_t s, int64_t N) {
    const int64_t m = n / 2, step = N / n;
    for (int64_t p = 0; p < m; p++) {
        const double *w1 = w + 2 * p * step;
        for (int64_t q = 0; q < s; q++) {
            const vc a = x[q + s * p], b = x[q + s * (p + m)];
            y[q + s * 2 * p] = (vc){a.re + b.re, a.im + b.im};
            y[q + s * (2 * p + 1)] = times((vc){a.re - b.re, a.im - b.im}, w1[0], w1[1]);
        }
    }
}

static void pass4(vc *y, const vc *x, const double *w, int64_t n, int64_t s, int64_t N) {
    const int64_t m = n / 4, step = N / n;
    for (int64_t p = 0; p < m; p++) {
        const double *w1 = w + 2 * p * step, *w2 = w + 4 * p * step, *w3 = w + 6 * p * step;
        for (int64_t q = 0; q < s; q++) {
            const vc a = x[q + s * p], b = x[q + s * (p + m)], c = x[q + s * (p + 2 * m)],
                     d = x[q + s * (p + 3 * m)];
            const vc even = {a.re + c.re, a.im + c.im}, odd = {b.re + d.re, b.im + d.im};
            const vc u = {a.re - c.re, a.im - c.im}, v = {b.im - d.im, d.re - b.re}; /* -i (b - d) */
            vc *out = y + q + s * 4 * p;
            out[0] = (vc){even.re + odd.re, even.im + odd.im};
            out[s] = times((vc){u.re + v.re, u.im + v.im}, w1[0], w1[1]);
            out[2 * s] = times((vc){even.re - odd.re, even.im - odd.im}, w2[0], w2[1]);
            out[3 * s] = times((vc){u.re - v.re, u.im - v.im}, w3[0], w3[1]);
        }
    }
}

static void pass5(vc *y, const vc *x, const double *w, int64_t n, int64_t s, int64_t N) {
    const int64_t m = n / 5, step = N / n;
    const double c1 = 0.30901699437494745, c2 = -0.80901699437494745; /* cos 2 pi / 5, cos 4 pi / 5 */
    const double s1 = 0.95105651629515357, s2 = 0.58778525229247313;
    for (int64_t p = 0; p < m; p++)
        for (int64_t q = 0; q < s; q++) {
            const vc *in = x + q + s * p, a = in[0], b = in[s * m], c = in[2 * s * m], d = in[3 * s * m],
                     e = in[4 * s * m];
            const vc t1 = {b.re + e.re, b.im + e.im}, t2 = {c.re + d.re, c.im + d.im};
            const vc t3 = {b.re - e.re, b.im - e.im}, t4 = {c.re - d.re, c.im - d.im};
            const vc m1 = {a.re + c1 * t1.re + c2 * t2.re, a.im + c1 * t1.im + c2 * t2.im};
            const vc m2 = {a.re + c2 * t1.re + c1 * t2.re, a.im + c2 * t1.im + c1 * t2.im};
            const vc n1 = {s1 * t3.im + s2 * t4.im, -s1 * t3.re - s2 * t4.re}; /* -i (s1 t3 + s2 t4) */
            const vc n2 = {s2 * t3.im - s1 * t4.im, s1 * t4.re - s2 * t3.re};
            const double *w1 = w + 2 * p * step, *w2 = w + 4 * p * step, *w3 = w + 6 * p * step,
                         *w4 = w + 8 * p * step;
            vc *out = y + q + s * 5 * p;
            out[0] = (vc){a.re + t1.re + t2.re, a.im + t1.im + t2.im};
            out[s] = times((vc){m1.re + n1.re, m1.im + n1.im}, w1[0], w1[1]);
            out[2 * s] = times((vc){m2.re + n2.re, m2.im + n2.im}, w2[0], w2[1]);
            out[3 * s] = times((vc){m2.re - n2.re, m2.im - n2.im}, w3[0], w3[1]);
            out[4 * s] = times((vc){m1.re - n1.re, m1.im - n1.im}, w4[0], w4[1]);
        }
}

/* The transform of a[N]; which of the two buffers holds it. */
static const vc *transform(vc *a, vc *b, const bvl_mel *mel) {
    int64_t n = mel->length, s = 1;
    for (int i = 0; i < mel->passes; i++) {
        const int64_t r = mel->radix[i];
        if (r == 4)
            pass4(b, a, mel->turns, n, s, mel->length);
        else if (r == 2)
            pass2(b, a, mel->turns, n, s, mel->length);
        else if (r == 5)
            pass5(b, a, mel->turns, n, s, mel->length);
        else
            pass(b, a, mel->turns, n, s, r, mel->length);
        vc *const swap = a;
        a = b;
        b = swap;
        n /= r;
        s *= r;
    }
    return a;
}

/* z[length] from 2 * LANES frames: mean taken off, pre-emphasis, window, zeros. */
static void load(vc *z, const float *const *frames, const bvl_mel *mel) {
    vc mean = {{0}, {0}};
    for (int64_t n = 0; n < mel->frame; n++) {
        for (int l = 0; l < LANES; l++) {
            z[n].re[l] = (double)frames[2 * l][n];
            z[n].im[l] = (double)frames[2 * l + 1][n];
        }
        mean.re += z[n].re;
        mean.im += z[n].im;
    }
    if (mel->remove_mean) {
        mean.re /= (double)mel->frame;
        mean.im /= (double)mel->frame;
        for (int64_t n = 0; n < mel->frame; n++) z[n] = (vc){z[n].re - mean.re, z[n].im - mean.im};
    }
    if (mel->emphasis != 0) {
        for (int64_t n = mel->frame - 1; n > 0; n--)
            z[n] = (vc){z[n].re - mel->emphasis * z[n - 1].re, z[n].im - mel->emphasis * z[n - 1].im};
        z[0] = (vc){z[0].re * (1 - mel->emphasis), z[0].im * (1 - mel->emphasis)};
    }
    for (int64_t n = 0; n < mel->frame; n++) z[n] = (vc){z[n].re * mel->window[n], z[n].im * mel->window[n]};
    for (int64_t n = mel->frame; n < mel->length; n++) z[n] = (vc){{0}, {0}};
}

void BVL_NAME(bvl_mel_frames)(float *const *out, int64_t step, const float *const *frames, const bvl_mel *mel,
                              double *scratch) {
    const int64_t N = mel->length;
    vc *a = (vc *)(void *)scratch, *b = a + N, *power = b + N; /* [N / 2 + 1], of A and of B */
    load(a, frames, mel);
    const vc *z = transform(a, b, mel);
    for (int64_t k = 0; k <= N / 2; k++) {
        const vc u = z[k], v = z[k ? N - k : 0];
        const vd ar = u.re + v.re, ai = u.im - v.im, br = u.im + v.im, bi = v.re - u.re;
        power[k] = (vc){(ar * ar + ai * ai) * 0.25, (br * br + bi * bi) * 0.25};
    }
    for (int64_t k = 0; k <= N / 2 && mel->amplitudes; k++)
        power[k] = (vc){root(power[k].re), root(power[k].im)};
    const double *weight = mel->weights;
    const vd floor = set1(mel->floor);
    for (int64_t m = 0; m < mel->mels; m++) {
        vc sum = {{0}, {0}};
        for (int64_t k = 0; k < mel->count[m]; k++, weight++) {
            sum.re += power[mel->begin[m] + k].re * *weight;
            sum.im += power[mel->begin[m] + k].im * *weight;
        }
        sum.re = logarithm(mel->amplitudes ? sum.re + floor : at_least(sum.re, floor)) * mel->scale;
        sum.im = logarithm(mel->amplitudes ? sum.im + floor : at_least(sum.im, floor)) * mel->scale;
        for (int l = 0; l < LANES; l++) {
            if (out[2 * l]) out[2 * l][m * step] = (float)sum.re[l];
            if (out[2 * l + 1]) out[2 * l + 1][m * step] = (float)sum.im[l];
        }
    }
}
