/* attention.c: both products of attention run on the matrix kernel, a block of queries at a time, so
 * that keys, values and scores stay in the cache.
 *
 *   K [Tk, hd] is packed as weights of S = Q K^T       (N = Tk, K = hd)
 *   V [Tk, hd] is packed as weights of O = softmax(S) V (N = hd, K = Tk), given transposed
 *
 * Keys too far from a query are lowered as masked ones are. A bias by distance (T5; Raffel et al., 2020) is
 * one table per head: a query's row of it is a window of the table, its ends repeated.
 */
#include "attention.h"

#include <math.h>
#include <string.h>

#define QUERY_BLOCK 64 /* at most: a window of Swin's, five tiles of AVX-512 */

bool bvl_attention_bf16(const bvl_kernels *kernels, bvl_precision precision, int64_t hd) {
    return (precision == BVL_BFLOAT16 || precision == BVL_INT8) && kernels->bf16_rows &&
           hd % 2 == 0; /* a row's pairs do not straddle heads */
}

/* Words of the packed keys alone. */
static int64_t key_words(const bvl_product *product, int64_t Tk, int64_t hd) {
    return bvl_round_up(product->packed_words(Tk, hd), 16);
}

int64_t bvl_attention_words(const bvl_kernels *kernels, bool bf16, int64_t Tk, int64_t hd) {
    const bvl_product *product = &kernels->product[bf16 ? BVL_BFLOAT16 : BVL_FLOAT32];
    return key_words(product, Tk, hd) + bvl_round_up(product->packed_words(hd, Tk), 16);
}

int64_t bvl_attention_scratch(const bvl_kernels *kernels, int64_t Tk, int64_t hd) {
    int64_t words = bvl_attention_words(kernels, false, Tk, hd);
    if (kernels->bf16_rows) words = BVL_MAX(words, bvl_attention_words(kernels, true, Tk, hd));
    return words + 2 * QUERY_BLOCK * bvl_padded(Tk);
}

void bvl_attention_pack(const bvl_kernels *kernels, float *packed, const float *k, const float *v,
                        const bvl_attention_shape *s) {
    const bvl_product *product = &kernels->product[s->bf16 ? BVL_BFLOAT16 : BVL_FLOAT32];
    float *values = packed + key_words(product, s->Tk, s->hd);
    if (s->bf16) {
        kernels->pack_bf16(packed, (const uint16_t *)(const void *)k, 2 * s->ldkv, s->Tk, s->hd, false);
        kernels->pack_bf16(values, (const uint16_t *)(const void *)v, 2 * s->ldkv, s->hd, s->Tk, true);
        return;
    }
    product->pack(packed, k, s->ldkv, s->Tk, s->hd, false, 0, bvl_panels(kernels, s->Tk));
    product->pack(values, v, s->ldkv, s->hd, s->Tk, true, 0, bvl_panels(kernels, s->hd));
}

/* row[n] = what is added to the scores of the query at place `at` for keys 0 .. n - 1. */
static void relative_row(const bvl_kernels *kernels, float *row, int64_t n, int64_t at,
                         const bvl_attention_shape *s) {
    const int64_t near = BVL_MIN(BVL_MAX(at - s->reach, 0), n), far = BVL_MIN(at + s->reach + 1, n);
    for (int64_t j = 0; j < near; j++) row[j] = s->relative[0];
    if (far > near)
        memcpy(row + near, s->relative + s->reach + near - at, (size_t)(far - near) * sizeof(float));
    for (int64_t j = BVL_MAX(far, near); j < n; j++) row[j] = s->relative[2 * s->reach];
    if (s->bias) kernels->add(row, s->bias, n);
}

/* row[n] = -inf for keys that are further than s->sliding from the query at place `at`, else what is added.
 */
static const float *sliding_row(float *row, int64_t n, int64_t at, const bvl_attention_shape *s,
                                const float *bias) {
    for (int64_t j = 0; j < n; j++)
        row[j] = j < at - s->sliding || j > at + s->sliding ? -INFINITY : bias ? bias[j] : 0.0f;
    return row;
}

/* The biases by pair of the queries from t0 on, [rows, Tk]; `bias` is scratch. */
static const float *pair_rows(const bvl_kernels *kernels, float *bias, int64_t t0, int64_t rows,
                              const bvl_attention_shape *s) {
    const float *pairs = s->pairs + t0 * s->Tk;
    if (!s->apart) return pairs;
    memcpy(bias, pairs, (size_t)(rows * s->Tk) * sizeof(float));
    kernels->add(bias, s->apart + t0 * s->Tk, rows * s->Tk);
    return bias;
}

/* Zeros for the keys that a query does not see, up to the operand's end. */
static void clear_rest(float *shares, int64_t seen, const bvl_attention_shape *s, int64_t words) {
    const size_t begin = (size_t)seen * (s->bf16 ? sizeof(uint16_t) : sizeof(float));
    const size_t end = (size_t)words * sizeof(float);
    if (begin < end) memset((char *)shares + begin, 0, end - begin);
}

/* scores = softmax(scores), operand rows of so many words, of the queries from t0 on; biases[rows, Tk] is
 * scratch. */
static void share_rows(const bvl_kernels *kernels, float *scores, int64_t t0, int64_t rows, int64_t words,
                       const bvl_attention_shape *s, float *biases) {
    const int64_t ld = bvl_padded(s->Tk);
    const bool slides = s->sliding && s->Tk > s->sliding + 1; /* some keys are too far from some queries */
    if (!s->causal && !s->relative && !slides) {
        const float *bias = s->pairs ? pair_rows(kernels, biases, t0, rows, s) : s->bias;
        kernels->softmax(scores, ld, scores, ld, rows, s->Tk, s->scale, bias, s->pairs ? s->Tk : 0, s->bf16);
        for (int64_t i = 0; i < rows; i++) clear_rest(scores + i * ld, s->Tk, s, words);
        return;
    }
    for (int64_t i = 0; i < rows; i++) {
        const int64_t at = s->first + t0 + i, last = BVL_MAX(at + 1, s->prefix);
        const int64_t seen = s->causal ? BVL_MIN(last, s->Tk) : s->Tk;
        const float *bias = s->bias;
        if (s->relative) {
            relative_row(kernels, biases, seen, at, s);
            bias = biases;
        }
        if (slides) bias = sliding_row(biases, seen, at, s, bias);
        kernels->softmax(scores + i * ld, ld, scores + i * ld, ld, 1, seen, s->scale, bias, 0, s->bf16);
        clear_rest(scores + i * ld, seen, s, words);
    }
}

void bvl_attention_packed(const bvl_kernels *kernels, float *out, const float *q, const float *packed,
                          const bvl_attention_shape *s, float *scratch) {
    const bvl_product *product = &kernels->product[s->bf16 ? BVL_BFLOAT16 : BVL_FLOAT32];
    const bvl_epilogue plain = {0}, finish = {.bf16 = s->out_bf16};
    const int64_t ld = bvl_padded(s->Tk);
    const float *values = packed + key_words(product, s->Tk, s->hd);
    float *scores = scratch, *biases = scores + QUERY_BLOCK * ld;
    const int64_t blocks = (s->Tq + QUERY_BLOCK - 1) / QUERY_BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t t0 = s->Tq * b / blocks, rows = s->Tq * (b + 1) / blocks - t0;
        product->gemm(scores, ld, q + t0 * s->ldq, s->ldq, packed, rows, s->Tk, s->hd, 0,
                      bvl_panels(kernels, s->Tk), &plain);
        share_rows(kernels, scores, t0, rows, product->operand_words(s->Tk), s, biases);
        product->gemm(out + t0 * s->ldo, s->ldo, scores, ld, values, rows, s->hd, s->Tk, 0,
                      bvl_panels(kernels, s->hd), &finish);
    }
}

void bvl_attention(const bvl_kernels *kernels, float *out, const float *q, const float *k, const float *v,
                   const bvl_attention_shape *s, float *scratch) {
    bvl_attention_pack(kernels, scratch, k, v, s);
    bvl_attention_packed(kernels, out, q, scratch, s,
                         scratch + bvl_attention_words(kernels, s->bf16, s->Tk, s->hd));
}
