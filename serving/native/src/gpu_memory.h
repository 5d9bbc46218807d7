/* Memory of the GPU, from ONNX Runtime's allocator. Not run on a GPU yet. */
#pragma once

#include "onnxruntime.h"

/* Allocate `bytes` zeros. */
llm_status gpu_zeros(const OrtApi *api, OrtAllocator *gpu, size_t bytes, void **memory,
                     llm_error *error);

/* Free them; NULL is fine. */
void gpu_free(const OrtApi *api, OrtAllocator *gpu, void *memory);
