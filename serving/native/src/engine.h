/* A decoder graph opened in ONNX Runtime, on one provider. */
#pragma once

#include "manifest.h"
#include "onnxruntime.h"

/* Buffers of the GPU are allocated by ONNX Runtime, others by us. */
typedef struct {
    const OrtApi *api;
    OrtEnv *env;
    OrtSession *session;
    OrtMemoryInfo *host;         /* our own memory */
    OrtMemoryInfo *cache;        /* where the KV cache is: `host`, or the GPU's memory */
    OrtAllocator *gpu;           /* NULL on the CPU */
    OrtRunOptions *after_prompt; /* gives back what a long prompt's buffers took; NULL on a GPU */
    const char *provider;
    const char *version;
    const char *kernels; /* the file of those in use, or NULL */
} Engine;

/* Open the graph at `path`; see llm_model_options. */
llm_status engine_open(const char *path, const Manifest *manifest, const llm_model_options *options,
                       Memory *memory, Engine *engine, llm_error *error);

/* Release what was opened, if anything. */
void engine_close(Engine *engine);
