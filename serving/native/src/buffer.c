#include "buffer.h"

#include <string.h>

#include "failure.h"

#define SMALLEST 64

llm_status buffer_reserve(Buffer *buffer, size_t more, size_t item_bytes, Memory *memory,
                          llm_error *error) {
    if (buffer->items && buffer->capacity - buffer->count >= more)
        return LLM_OK;
    size_t capacity = buffer->capacity ? buffer->capacity : SMALLEST;
    while (capacity - buffer->count < more && capacity <= SIZE_MAX / 4)
        capacity *= 2;
    void *items;
    TRY(memory_take(memory, capacity, item_bytes, &items, error));
    if (buffer->count)
        memcpy(items, buffer->items, buffer->count * item_bytes);
    buffer->items = items;
    buffer->capacity = capacity;
    return LLM_OK;
}

llm_status buffer_append(Buffer *buffer, const char *text, size_t size, Memory *memory,
                         llm_error *error) {
    TRY(buffer_reserve(buffer, size, 1, memory, error));
    if (size)
        memcpy((char *)buffer->items + buffer->count, text, size);
    buffer->count += size;
    return LLM_OK;
}
