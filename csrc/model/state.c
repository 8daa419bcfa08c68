/* state.c: contexts and caches; see state.h. */
#include "state.h"

#include <string.h>

#include "../arena.h"
#include "../ops/attention.h"

enum { MOST_ROWS = 1 << 20, MOST_TOKENS = 1 << 24 };

bvl_status bvl_context_layer(bvl_context_shape *shape, int64_t heads, int64_t hd, bool bf16, const char *name,
                             bvl_error *err) {
    if (shape->layers && (shape->heads != heads || shape->hd != hd))
        return bvl_fail(err, BVL_INVALID,
                        "%s: %lld heads of %lld, expected %lld of %lld as the layers before", name,
                        (long long)heads, (long long)hd, (long long)shape->heads, (long long)shape->hd);
    *shape = (bvl_context_shape){shape->layers + 1, heads, hd, bf16};
    return BVL_OK;
}

bvl_context *bvl_context_new(const bvl_context_shape *shape, const bvl_kernels *kernels, int64_t rows,
                             bvl_error *err) {
    if (rows < 1 || rows > MOST_ROWS) {
        bvl_fail(err, BVL_INVALID, "context: %lld tokens to attend to, expected 1 to %d", (long long)rows,
                 MOST_ROWS);
        return NULL;
    }
    bvl_context *context = bvl_alloc(sizeof *context);
    if (context) {
        *context = (bvl_context){.shape = *shape, .kernels = kernels, .rows = rows};
        context->words = shape->heads * bvl_attention_words(kernels, shape->bf16, rows, shape->hd);
        context->memory =
            bvl_alloc_array((size_t)shape->layers, (size_t)context->words * sizeof *context->memory);
        if (context->memory) return context;
    }
    bvl_context_free(context);
    bvl_fail(err, BVL_NO_MEMORY, "no memory for a context of %lld tokens", (long long)rows);
    return NULL;
}

void bvl_context_free(bvl_context *context) {
    if (context) bvl_free(context->memory);
    bvl_free(context);
}

bvl_cache *bvl_cache_new(const void *program, int64_t layers, const int64_t *layer_words, int64_t B,
                         int64_t capacity, bvl_error *err) {
    if (layers < 1 || B < 1 || capacity < 1 || B > MOST_TOKENS / capacity) {
        bvl_fail(
            err, BVL_INVALID,
            "cache: %lld items of %lld tokens over %lld layers, expected at least one of each and at most "
            "%d tokens",
            (long long)B, (long long)capacity, (long long)layers, MOST_TOKENS);
        return NULL;
    }
    bvl_cache *cache = bvl_alloc(sizeof *cache);
    size_t tokens, bytes;
    if (cache) {
        *cache = (bvl_cache){.program = program, .B = B, .capacity = capacity, .layers = layers};
        atomic_flag_clear(&cache->busy);
        cache->before = bvl_alloc_array((size_t)layers + 1, sizeof *cache->before);
        for (int64_t i = 0; i < layers && cache->before; i++)
            cache->before[i + 1] = cache->before[i] + layer_words[i];
        if (cache->before && bvl_size_mul((size_t)B, (size_t)capacity, &tokens) &&
            bvl_size_mul((size_t)cache->before[layers], sizeof *cache->memory, &bytes)) {
            cache->memory = bvl_alloc_array(tokens, bytes);
            cache->other = B > 1 ? bvl_alloc_array(tokens, bytes) : NULL;
        }
        if (cache->memory && (cache->other || B == 1)) return cache;
    }
    bvl_cache_free(cache);
    bvl_fail(err, BVL_NO_MEMORY, "no memory for a cache of %lld items of %lld tokens", (long long)B,
             (long long)capacity);
    return NULL;
}

void bvl_cache_free(bvl_cache *cache) {
    if (!cache) return;
    bvl_free(cache->before);
    bvl_free(cache->memory);
    bvl_free(cache->other);
    bvl_free(cache);
}

/* Words of one item in one layer. */
static int64_t item_words(const bvl_cache *cache, int64_t layer) {
    return cache->capacity * (cache->before[layer + 1] - cache->before[layer]);
}

float *bvl_cache_rows(const bvl_cache *cache, int64_t layer, int64_t item) {
    return cache->memory + cache->B * cache->capacity * cache->before[layer] +
           item * item_words(cache, layer);
}

bvl_status bvl_cache_reorder(bvl_cache *cache, const int64_t *from, bvl_error *err) {
    bool same = true;
    for (int64_t i = 0; i < cache->B; i++) {
        same = same && from[i] == i;
        if (from[i] < 0 || from[i] >= cache->B)
            return bvl_fail(err, BVL_INVALID, "reorder: item %lld, expected 0 to %lld", (long long)from[i],
                            (long long)cache->B - 1);
    }
    if (same) return BVL_OK;
    for (int64_t l = 0; l < cache->layers; l++) {
        const float *first = bvl_cache_rows(cache, l, 0);
        const int64_t item = item_words(cache, l);
        for (int64_t i = 0; i < cache->B; i++)
            memcpy(cache->other + (first - cache->memory) + i * item, first + from[i] * item,
                   (size_t)(item / cache->capacity * cache->length) * sizeof *cache->memory);
    }
    float *memory = cache->memory;
    cache->memory = cache->other;
    cache->other = memory;
    return BVL_OK;
}
