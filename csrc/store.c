/* store.c: the list of a program's weight blocks, and the checksum of a saved one.
 *
 * checksum: eight lanes h = (h ^ x) * p over the words of each MiB (FNV-1a on 64-bit words), then the same
 * over lanes and MiBs in order.
 */
#include "store.h"

#include <stdatomic.h>
#include <string.h>

#include "arena.h"
#include "parallel.h"

bvl_status bvl_store_take(bvl_store *store, size_t bytes, void **memory, bool *filled, bvl_error *err) {
    *filled = store->mapped != NULL;
    if (bytes > SIZE_MAX / 2) return bvl_fail(err, BVL_INVALID, "weights of %zu bytes", bytes);
    if (store->mapped) {
        const size_t aligned = (bytes + BVL_ALIGNMENT - 1) / BVL_ALIGNMENT * BVL_ALIGNMENT;
        if (aligned > store->mapped_bytes - store->used)
            return bvl_fail(err, BVL_INVALID, "packed weights: found %zu bytes, expected %zu and more",
                            store->mapped_bytes, store->used + aligned);
        *memory = (void *)(store->mapped + store->used);
        store->used += aligned;
    } else if (!(*memory = bvl_alloc(bytes))) {
        return bvl_fail(err, BVL_NO_MEMORY, "no memory for %zu bytes of weights", bytes);
    }
    bvl_stored *blocks = bvl_grown(store->blocks, store->count, &store->capacity, sizeof *blocks);
    if (!blocks) {
        if (!store->mapped) bvl_free(*memory);
        return bvl_fail(err, BVL_NO_MEMORY, "no memory for one more block of weights");
    }
    store->blocks = blocks;
    blocks[store->count++] = (bvl_stored){*memory, bytes};
    return BVL_OK;
}

void bvl_store_free(bvl_store *store) {
    for (int i = 0; i < store->count && !store->mapped; i++) bvl_free(store->blocks[i].memory);
    bvl_free(store->blocks);
    store->blocks = NULL;
    store->count = 0;
}

int64_t bvl_store_bytes(const bvl_store *store) {
    int64_t bytes = 0;
    for (int i = 0; i < store->count; i++) bytes += (int64_t)store->blocks[i].bytes;
    return bytes;
}

enum { LANES = 8, PIECE = 1 << 20, AHEAD = 2048 /* bytes: the processor's own fetching comes too late */ };
static const uint64_t prime = 0x100000001b3, basis = 0xcbf29ce484222325;

static uint64_t piece_sum(const uint8_t *data, size_t bytes) {
    uint64_t lanes[LANES], sum = basis;
    for (int i = 0; i < LANES; i++) lanes[i] = basis + (uint64_t)i;
    for (size_t at = 0; at < bytes; at += sizeof lanes) {
        uint64_t words[LANES];
        __builtin_prefetch(data + BVL_MIN(at + AHEAD, bytes));
        memcpy(words, data + at, sizeof words);
        for (int i = 0; i < LANES; i++) {
            lanes[i] = (lanes[i] ^ words[i]) * prime;
            lanes[i] ^= lanes[i] >> 29; /* high bits reach the low ones */
        }
    }
    for (int i = 0; i < LANES; i++) sum = (sum ^ lanes[i]) * prime;
    return sum;
}

typedef struct {
    const uint8_t *data;
    size_t bytes;
    uint64_t *sums;     /* one per piece */
    atomic_size_t next; /* the first piece that nobody took: threads of a new process start late */
} sum_job;

static void sum_pieces(void *context, bvl_team team) {
    (void)team;
    sum_job *job = context;
    const size_t pieces = (job->bytes + PIECE - 1) / PIECE;
    for (size_t i; (i = atomic_fetch_add(&job->next, 1)) < pieces;) {
        const size_t at = i * PIECE;
        job->sums[i] = piece_sum(job->data + at, BVL_MIN((size_t)PIECE, job->bytes - at));
    }
}

uint64_t bvl_checksum(const void *data, size_t bytes, int nt) {
    const size_t pieces = (bytes + PIECE - 1) / PIECE;
    uint64_t sum = basis ^ bytes;
    sum_job job = {data, bytes, bvl_alloc_array(pieces + 1, sizeof(uint64_t)), 0};
    if (job.sums) bvl_parallel(nt, sum_pieces, &job);
    for (size_t i = 0; i < pieces; i++) {
        const size_t at = i * PIECE;
        const uint64_t piece =
            job.sums ? job.sums[i]
                     : piece_sum((const uint8_t *)data + at, BVL_MIN((size_t)PIECE, bytes - at));
        sum = (sum ^ piece) * prime;
    }
    bvl_free(job.sums);
    return sum;
}
