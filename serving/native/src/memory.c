#include "memory.h"

#include "failure.h"

#include <stdlib.h>
#include <string.h>

struct MemoryBlock {
    MemoryBlock *older;
};

static void *allocate_zeros(size_t bytes, void *user_data) {
    (void)user_data;
    return calloc(1, bytes);
}

static void release_zeros(void *memory, void *user_data) {
    (void)user_data;
    free(memory);
}

Memory memory_from(const llm_allocator *allocator) {
    static const llm_allocator from_calloc = {allocate_zeros, release_zeros, NULL};
    return (Memory){.allocator = allocator->allocate ? *allocator : from_calloc};
}

llm_status memory_take(Memory *memory, size_t count, size_t item_bytes, void *pointer,
                       llm_error *error) {
    const size_t overhead = sizeof(MemoryBlock) + MEMORY_ALIGNMENT;
    size_t bytes;
    MemoryBlock *block = NULL;
    if (!__builtin_mul_overflow(count, item_bytes, &bytes) && bytes <= SIZE_MAX / 2 - overhead)
        block = memory->allocator.allocate(bytes + overhead, memory->allocator.user_data);
    if (!block)
        return fail(error, LLM_OUT_OF_MEMORY,
                    "There is no memory for %zu x %zu bytes: open the bundle with less capacity "
                    "or fewer rows.",
                    count, item_bytes);
    block->older = memory->newest;
    memory->newest = block;
    const uintptr_t end = (uintptr_t)(block + 1) + MEMORY_ALIGNMENT - 1;
    void *const aligned = (void *)(end - end % MEMORY_ALIGNMENT);
    memcpy(pointer, &aligned, sizeof aligned);
    return LLM_OK;
}

void memory_free(Memory *memory) {
    while (memory->newest) {
        MemoryBlock *const block = memory->newest;
        memory->newest = block->older;
        memory->allocator.release(block, memory->allocator.user_data);
    }
}
