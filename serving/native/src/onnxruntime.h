/* ONNX Runtime's library: found, loaded, and its C interface. */
#pragma once

#include "failure.h"

#include <onnxruntime_c_api.h>

typedef struct {
    const OrtApi *api;
    const char *version;
} OnnxRuntime;

/* Load the library at `path`, or the one that is found; see llm_model_options. It stays loaded. */
llm_status onnxruntime_load(const char *path, OnnxRuntime *runtime, llm_error *error);

/* Return LLM_OK, or LLM_ENGINE_FAILED with ONNX Runtime's own message, whose status is released. */
llm_status onnxruntime_check(const OrtApi *api, OrtStatus *status, const char *doing,
                             llm_error *error);
