#include "gpu_memory.h"

#include <dlfcn.h>
#include <string.h>

/* Fill with zeros by the driver, in the context that the allocation made current. */
static bool fill_with_zeros(void *memory, size_t bytes) {
    int (*fill)(uintptr_t, unsigned char, size_t);
    void *const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    void *const symbol = driver ? dlsym(driver, "cuMemsetD8_v2") : NULL;
    memcpy(&fill, &symbol, sizeof symbol);
    return symbol && fill((uintptr_t)memory, 0, bytes) == 0;
}

llm_status gpu_zeros(const OrtApi *api, OrtAllocator *gpu, size_t bytes, void **memory,
                     llm_error *error) {
    void *allocated;
    TRY(onnxruntime_check(api, api->AllocatorAlloc(gpu, bytes, &allocated), "allocating", error));
    *memory = allocated;
    return fill_with_zeros(allocated, bytes)
               ? LLM_OK
               : fail(error, LLM_ENGINE_FAILED, "The GPU's memory can't be cleared: use the CPU.");
}

void gpu_free(const OrtApi *api, OrtAllocator *gpu, void *memory) {
    if (memory)
        onnxruntime_check(api, api->AllocatorFree(gpu, memory), "freeing", NULL);
}
