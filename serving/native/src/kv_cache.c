#include "kv_cache.h"

#include "cores.h"
#include "gpu_memory.h"

#include <stdio.h>

static llm_status check_free_memory(const Engine *engine, const Manifest *manifest,
                                    const KVCache *cache, llm_error *error) {
    const double needed =
        (double)manifest_kv_bytes(manifest) * (double)cache->rows * (double)cache->capacity;
    if (engine->gpu || needed <= (double)free_memory())
        return LLM_OK;
    return fail(error, LLM_OUT_OF_MEMORY,
                "The KV buffers need %.1f GB, but %.1f GB are free: take less capacity than %zu or "
                "fewer rows than %zu.",
                needed / 1e9, (double)free_memory() / 1e9, cache->capacity, cache->rows);
}

static llm_status allocate(const Engine *engine, const KVCache *cache, Memory *memory,
                           CacheBuffer *buffer, llm_error *error) {
    if (engine->gpu)
        return gpu_zeros(engine->api, engine->gpu, cache->rows * buffer->row_bytes, &buffer->data,
                         error);
    return memory_take(memory, cache->rows, buffer->row_bytes, &buffer->data, error);
}

static llm_status create_buffer(const Engine *engine, const Layer *layer, size_t number, int part,
                                Memory *memory, KVCache *cache, llm_error *error) {
    static const char *const parts[] = {"key", "value"};
    CacheBuffer *const buffer = &cache->buffers[cache->count++];
    const size_t row = layer->kv_heads * layer->dims[part] * element_bytes[cache->type];
    if (__builtin_mul_overflow(row, cache->capacity, &buffer->row_bytes))
        return fail(error, LLM_OUT_OF_MEMORY, "No memory holds %zu tokens: take less capacity.",
                    cache->capacity);
    buffer->shape[1] = (int64_t)layer->kv_heads;
    buffer->shape[2] = (int64_t)cache->capacity;
    buffer->shape[3] = (int64_t)layer->dims[part];
    snprintf(buffer->past, sizeof buffer->past, "past_key_values.%zu.%s", number, parts[part]);
    snprintf(buffer->present, sizeof buffer->present, "present.%zu.%s", number, parts[part]);
    return allocate(engine, cache, memory, buffer, error);
}

llm_status kv_cache_create(const Engine *engine, const Manifest *manifest, size_t rows,
                           size_t capacity, Memory *memory, KVCache *cache, llm_error *error) {
    *cache = (KVCache){.rows = rows, .capacity = capacity, .type = manifest->cache};
    TRY(check_free_memory(engine, manifest, cache, error));
    TRY(memory_take(memory, 2 * manifest->layer_count, sizeof(CacheBuffer), &cache->buffers,
                    error));
    for (size_t layer = 0; layer < manifest->layer_count; layer++)
        for (int part = 0; part < 2; part++)
            TRY(create_buffer(engine, &manifest->layers[layer], layer, part, memory, cache, error));
    return LLM_OK;
}

void kv_cache_free(const Engine *engine, KVCache *cache) {
    for (size_t i = 0; engine->gpu && i < cache->count; i++)
        gpu_free(engine->api, engine->gpu, cache->buffers[i].data);
}
