/* Memory that is freed together: that of a model, or of a session. */
#pragma once

#include "llm_runtime.h"

/* What KV buffers and tensors begin at: a cache line. */
#define MEMORY_ALIGNMENT 64

typedef struct MemoryBlock MemoryBlock;

typedef struct {
    llm_allocator allocator;
    MemoryBlock *newest;
} Memory;

/* A memory that takes from an allocator, or from calloc if that is all zeros. */
Memory memory_from(const llm_allocator *allocator);

/* Zeros for `count` items, at a cache line; fails with LLM_OUT_OF_MEMORY. */
llm_status memory_take(Memory *memory, size_t count, size_t item_bytes, void *pointer,
                       llm_error *error);

/* Free all that was taken. */
void memory_free(Memory *memory);
