/* search.h: the rows that have the largest products with queries, by looking at all of them. */
#ifndef BVL_SEARCH_H
#define BVL_SEARCH_H

#include "../kernels/kernels.h"

enum { BVL_SEARCH_MOST_D = 4096, BVL_SEARCH_MOST_K = 1 << 16 };

/* Rows that are searched, often a mapped file. */
typedef struct {
    const void *rows; /* [count, D] of `form`; binary: [count, (D + 7) / 8] bytes */
    bvl_row_form form;
    int64_t count, D;
    const float *scales; /* [count] of int8 rows: a row is its digits times that; else NULL */
    const uint8_t *mask; /* [count]: rows of 0 are passed over; or NULL */
} bvl_corpus;

/* The k rows of the largest products with each of Q queries [Q, D], the largest first, equal ones in order:
 * scores [Q, k] and hits [Q, k], their numbers; where there are fewer, -inf and -1. A score does not depend
 * on the other queries or on the threads; one that is NaN is none. Products of int8 rows have the query in
 * steps of its largest number / 4095; of binary rows they are those of signs, over D. */
bvl_status bvl_search(float *scores, int64_t *hits, const bvl_corpus *corpus, const float *queries, int64_t Q,
                      int64_t k, int nt, bvl_error *err);

#endif
