/* Export-llm's kernels for ONNX Runtime's CPU provider (serving/kernels): where they are. */
#pragma once

#include "failure.h"
#include "memory.h"

/* The library of kernels that run on this processor, or NULL; see llm_model_options. Fails if
 * `wanted` names one that can't be loaded. */
llm_status kernels_find(const char *wanted, Memory *memory, const char **path, llm_error *error);
