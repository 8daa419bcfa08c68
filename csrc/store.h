/* store.h: where the weights of a program live: allocated and filled when it is built, or taken ready-made,
 * in the same order, from a read-only mapping of a file that an earlier run saved. */
#ifndef BVL_STORE_H
#define BVL_STORE_H

#include "core.h"

typedef struct {
    void *memory;
    size_t bytes;
} bvl_stored;

typedef struct {
    bvl_stored *blocks; /* in the order they were taken */
    int count, capacity;
    const uint8_t *mapped; /* NULL: blocks are allocated, and freed with the store */
    size_t mapped_bytes, used;
} bvl_store;

/* A block of that many bytes, aligned as bvl_alloc does; *filled when its contents are there already. */
bvl_status bvl_store_take(bvl_store *store, size_t bytes, void **memory, bool *filled, bvl_error *err);
void bvl_store_free(bvl_store *store);
/* Bytes of all blocks. */
int64_t bvl_store_bytes(const bvl_store *store);

/* A 64-bit sum of `bytes` bytes (a multiple of 64) that any change is all but certain to change; on nt
 * threads, the same for any number of them. */
uint64_t bvl_checksum(const void *data, size_t bytes, int nt);

#endif
