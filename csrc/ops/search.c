/* search.c: exact nearest rows.
 *
 * A worker takes blocks of rows that stay in its cache. With few queries each is scanned (kernels/scan.c):
 * the bound is memory. With many, queries are the packed weights of a product and rows its activations, as
 * they lie where the level reads them so, else widened to float32. Scores beyond a query's k-th best so far
 * go into its heap, one for each worker.
 *
 * Products round in another order than scans, and natively round the query to bfloat16: so some more than k
 * are kept, and the scores that count are the scan's, of these alone.
 */
#include "search.h"

#include <math.h>
#include <stdlib.h>

#include "../arena.h"
#include "../parallel.h"

enum {
    FEW = 4,           /* queries below which each is scanned */
    BLOCK = 128,       /* rows looked at together */
    MOST_QUERIES = 256 /* together: packed they stay in the cache beside a block */
};
#define MOST_HITS ((int64_t)1 << 23) /* kept by all workers together: what bounds the queries of one pass */
#define DIGITS 4095.0f               /* of a query beside int8 rows */

typedef struct {
    float score;
    int64_t row;
} hit;

/* One pass: some queries over all rows. */
typedef struct {
    const bvl_kernels *kernels;
    const bvl_corpus *corpus;
    const float *queries;       /* [Q, D] */
    int64_t Q, kept;            /* hits kept of each query */
    const bvl_product *product; /* NULL: scan */
    float *packed;              /* the queries as its weights */
    int64_t query_bytes;        /* of one that is scanned */
    uint8_t *scanned;           /* [Q] queries as the scan reads them */
    float *steps;               /* [Q] what a scanned product is multiplied by */
    hit *heaps;                 /* [nt, Q, kept], the worst first */
    int64_t *sizes;             /* [nt, Q] */
    float *bars;                /* [nt, Q] what a score has to be above */
    float *scratch;             /* [nt, words] */
    int64_t words;
} search_pass;

/* Whether a is to be given up before b. */
static bool worse(const hit *a, const hit *b) {
    return a->score < b->score || (a->score == b->score && a->row > b->row);
}

/* Puts a hit into a heap of at most `most`, whose worst leaves when it is full. */
static void push(hit *heap, int64_t *size, int64_t most, hit h) {
    int64_t i;
    if (*size < most) {
        for (i = (*size)++; i > 0 && worse(&h, &heap[(i - 1) / 2]); i = (i - 1) / 2)
            heap[i] = heap[(i - 1) / 2];
    } else {
        if (!worse(&heap[0], &h)) return;
        for (i = 0;;) {
            int64_t child = 2 * i + 1;
            if (child >= most) break;
            if (child + 1 < most && worse(&heap[child + 1], &heap[child])) child++;
            if (!worse(&heap[child], &h)) break;
            heap[i] = heap[child];
            i = child;
        }
    }
    heap[i] = h;
}

static const void *row_at(const bvl_corpus *c, int64_t row) {
    const int64_t number = c->form == BVL_ROWS_FLOAT32 ? 4 : c->form == BVL_ROWS_BFLOAT16 ? 2 : 1;
    const int64_t bytes = c->form == BVL_ROWS_BINARY ? (c->D + 7) / 8 : c->D * number;
    return (const uint8_t *)c->rows + row * bytes;
}

/* Products of n rows with a query, by the scan. */
static void scan(const search_pass *s, float *scores, int64_t row, int64_t n, int64_t query) {
    const bvl_corpus *c = s->corpus;
    s->kernels->scan[c->form](scores, row_at(c, row), n, c->D, s->scanned + query * s->query_bytes);
    if (c->scales)
        for (int64_t i = 0; i < n; i++) scores[i] *= c->scales[row + i] * s->steps[query];
}

/* Whether the product reads rows as they lie. */
static bool as_they_lie(const bvl_kernels *kernels, const bvl_corpus *c) {
    if (c->form == BVL_ROWS_FLOAT32) return true;
    return c->form == BVL_ROWS_BFLOAT16 && kernels->bf16_rows && c->D % 2 == 0 &&
           kernels->product[BVL_BFLOAT16].operand_words(c->D) == c->D / 2;
}

/* scores [n, Q] of n rows with all queries, by the product. */
static void multiply_rows(const search_pass *s, float *scores, float *widened, int64_t row, int64_t n) {
    const bvl_corpus *c = s->corpus;
    const bvl_epilogue none = {0};
    const bool lie = as_they_lie(s->kernels, c);
    if (!lie)
        s->kernels->widen_rows(widened, row_at(c, row), c->form, c->scales ? c->scales + row : NULL, n, c->D);
    const float *a = lie ? row_at(c, row) : widened;
    const int64_t ld = lie && c->form == BVL_ROWS_BFLOAT16 ? c->D / 2 : c->D;
    s->product->gemm(scores, s->Q, a, ld, s->packed, n, s->Q, c->D, 0, bvl_panels(s->kernels, s->Q), &none);
}

/* Keeps what is better of scores [n, count] of n rows from `row` on with `count` queries, whose heaps begin
 * at `first`. */
static void keep(const search_pass *s, int64_t first, int64_t count, const float *scores, int64_t row,
                 int64_t n) {
    float *bars = s->bars + first;
    for (int64_t i = 0; i < n; i++, scores += count) {
        int any = 0;
        for (int64_t q = 0; q < count; q++) any |= scores[q] > bars[q];
        if (!any || (s->corpus->mask && !s->corpus->mask[row + i])) continue;
        for (int64_t q = 0; q < count; q++) {
            if (!(scores[q] > bars[q])) continue;
            hit *heap = s->heaps + (first + q) * s->kept;
            push(heap, &s->sizes[first + q], s->kept, (hit){scores[q], row + i});
            if (s->sizes[first + q] == s->kept) bars[q] = heap[0].score;
        }
    }
}

static void search_share(void *context, bvl_team team) {
    const search_pass *s = context;
    float *scores = s->scratch + team.tid * s->words, *widened = scores + BLOCK * s->Q;
    const int64_t heaps = team.tid * s->Q;
    int64_t b0, b1;
    bvl_share((s->corpus->count + BLOCK - 1) / BLOCK, team.tid, team.nt, &b0, &b1);
    for (int64_t row = b0 * BLOCK; row < BVL_MIN(b1 * BLOCK, s->corpus->count); row += BLOCK) {
        const int64_t n = BVL_MIN(BLOCK, s->corpus->count - row);
        if (s->product) {
            multiply_rows(s, scores, widened, row, n);
            keep(s, heaps, s->Q, scores, row, n);
        }
        for (int64_t q = 0; q < s->Q && !s->product; q++) {
            scan(s, scores, row, n, q);
            keep(s, heaps + q, 1, scores, row, n);
        }
    }
}

static int by_rank(const void *a, const void *b) {
    return worse(a, b) - worse(b, a);
}

/* The k best of what all workers kept of a query, by the scan's scores. */
static void gather(const search_pass *s, float *scores, int64_t *hits, int64_t query, int64_t k, int nt) {
    hit *all = s->heaps + query * s->kept;
    int64_t count = s->sizes[query];
    for (int t = 1; t < nt; t++) {
        const int64_t heap = t * s->Q + query;
        for (int64_t i = 0; i < s->sizes[heap]; i++) push(all, &count, s->kept, s->heaps[heap * s->kept + i]);
    }
    for (int64_t i = 0; s->product && i < count; i++) scan(s, &all[i].score, all[i].row, 1, query);
    qsort(all, (size_t)count, sizeof *all, by_rank);
    for (int64_t i = 0; i < k; i++) {
        scores[i] = i < count ? all[i].score : -INFINITY;
        hits[i] = i < count ? all[i].row : -1;
    }
}

/* A query x [D] in whole numbers; what a step is worth. */
static float to_digits(int16_t *digits, const float *x, int64_t D) {
    float largest = 0;
    for (int64_t d = 0; d < D; d++) largest = fmaxf(largest, fabsf(x[d]));
    for (int64_t d = 0; d < D; d++) digits[d] = (int16_t)(largest > 0 ? lrintf(x[d] / largest * DIGITS) : 0);
    return largest / DIGITS;
}

/* The queries as the scan reads them: float32, or whole numbers beside int8 rows, signs beside binary ones.
 */
static void prepare_scan(const search_pass *s) {
    const int64_t D = s->corpus->D;
    for (int64_t q = 0; q < s->Q; q++) {
        const float *x = s->queries + q * D;
        uint8_t *scanned = s->scanned + q * s->query_bytes;
        if (s->corpus->form == BVL_ROWS_INT8) {
            s->steps[q] = to_digits((int16_t *)(void *)scanned, x, D);
        } else if (s->corpus->form == BVL_ROWS_BINARY) {
            memset(scanned, 0, (size_t)(D + 7) / 8);
            for (int64_t d = 0; d < D; d++) scanned[d / 8] |= (uint8_t)((x[d] > 0) << (7 - d % 8));
        } else {
            memcpy(scanned, x, (size_t)D * sizeof *x);
        }
    }
}

static void free_pass(search_pass *s) {
    bvl_free(s->packed);
    bvl_free(s->scanned);
    bvl_free(s->steps);
    bvl_free(s->heaps);
    bvl_free(s->sizes);
    bvl_free(s->bars);
    bvl_free(s->scratch);
}

static bvl_status allocate_pass(search_pass *s, int nt, bvl_error *err) {
    const bvl_corpus *c = s->corpus;
    const int64_t widened = s->product && !as_they_lie(s->kernels, c) ? BLOCK * c->D : 0;
    const size_t heaps = (size_t)nt * (size_t)s->Q;
    s->words = bvl_round_up(BLOCK * s->Q + widened, 16);
    s->query_bytes = bvl_round_up(c->D * (int64_t)sizeof(float), 64);
    s->packed =
        s->product ? bvl_alloc_array((size_t)s->product->packed_words(s->Q, c->D), sizeof(float)) : NULL;
    s->scanned = bvl_alloc_array((size_t)s->Q, (size_t)s->query_bytes);
    s->steps = bvl_alloc_array((size_t)s->Q, sizeof(float));
    s->heaps = bvl_alloc_array(heaps * (size_t)s->kept, sizeof(hit));
    s->sizes = bvl_alloc_array(heaps, sizeof(int64_t));
    s->bars = bvl_alloc_array(heaps, sizeof(float));
    s->scratch = bvl_alloc_array((size_t)nt * (size_t)s->words, sizeof(float));
    const bool first = (s->packed || !s->product) && s->scanned && s->steps;
    if (first && s->heaps && s->sizes && s->bars && s->scratch) {
        for (size_t i = 0; i < heaps; i++) s->bars[i] = -INFINITY;
        return BVL_OK;
    }
    return bvl_fail(err, BVL_NO_MEMORY, "a search for %lld rows of each of %lld queries: not enough memory",
                    (long long)s->kept, (long long)s->Q);
}

static bvl_status run_pass(search_pass *s, float *scores, int64_t *hits, int64_t k, int nt, bvl_error *err) {
    const int64_t D = s->corpus->D;
    bvl_status status = allocate_pass(s, nt, err);
    if (status == BVL_OK) {
        prepare_scan(s);
        if (s->product)
            s->product->pack(s->packed, s->queries, D, s->Q, D, false, 0, bvl_panels(s->kernels, s->Q));
        bvl_parallel(nt, search_share, s);
        for (int64_t q = 0; q < s->Q; q++) gather(s, scores + q * k, hits + q * k, q, k, nt);
    }
    free_pass(s);
    return status;
}

bvl_status bvl_search(float *scores, int64_t *hits, const bvl_corpus *corpus, const float *queries, int64_t Q,
                      int64_t k, int nt, bvl_error *err) {
    const bvl_kernels *kernels = bvl_kernels_active();
    const bool native = corpus->form == BVL_ROWS_BFLOAT16 && as_they_lie(kernels, corpus);
    if (corpus->D < 1 || corpus->D > BVL_SEARCH_MOST_D || k < 1 || k > BVL_SEARCH_MOST_K)
        return bvl_fail(err, BVL_INVALID,
                        "a search for %lld of rows of %lld numbers, expected at most %d and %d", (long long)k,
                        (long long)corpus->D, BVL_SEARCH_MOST_K, BVL_SEARCH_MOST_D);
    nt = (int)BVL_MAX(1, BVL_MIN(nt, corpus->count / BLOCK));
    const int64_t kept = native ? 2 * k + 16 : k + 8;
    const int64_t most = BVL_MAX(1, BVL_MIN(MOST_QUERIES, MOST_HITS / (nt * kept)));
    for (int64_t q = 0; q < Q; q += most) {
        search_pass s = {
            .kernels = kernels, .corpus = corpus, .queries = queries + q * corpus->D, .kept = kept};
        s.Q = BVL_MIN(most, Q - q);
        if (s.Q >= FEW && corpus->form != BVL_ROWS_BINARY)
            s.product = &kernels->product[native ? BVL_BFLOAT16 : BVL_FLOAT32];
        if (run_pass(&s, scores + q * k, hits + q * k, k, nt, err) != BVL_OK) return err->status;
    }
    return BVL_OK;
}
