/* The KV cache: a buffer for the keys and one for the values of each layer, one row a text. */
#pragma once

#include "engine.h"

typedef struct {
    void *data; /* [rows, heads, capacity, dim] */
    int64_t shape[4];
    size_t row_bytes;
    char past[48]; /* names of the graph's input and output */
    char present[48];
} CacheBuffer;

typedef struct {
    CacheBuffer *buffers; /* keys and values of the first layer, of the second, ... */
    size_t count;
    size_t rows;
    size_t capacity;
    ElementType type;
} KVCache;

/* Allocate buffers of zeros: what was never written is multiplied by 0, which NaN isn't. */
llm_status kv_cache_create(const Engine *engine, const Manifest *manifest, size_t rows,
                           size_t capacity, Memory *memory, KVCache *cache, llm_error *error);

/* Free what isn't in `memory`. */
void kv_cache_free(const Engine *engine, KVCache *cache);
