#include "engine.h"

#include "code_pages.h"
#include "cores.h"
#include "kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name;     /* ours */
    const char *ort_name; /* ONNX Runtime's, for SessionOptionsAppendExecutionProvider */
} Provider;

static const Provider providers[] = {
    {"cpu", NULL},
    {"cuda", "CUDA"},
    {"tensorrt-rtx", "NvTensorRtRtx"},
};

/* See serving/onnxruntime.py, which says why. */
static const char *const slow_fusions = "SkipLayerNormFusion";
static const char *const slow_fusions_and_other_products =
    "SkipLayerNormFusion;MatmulTransposeFusion;MatMulScaleFusion";

#define ORT(engine, call, doing)                                                                   \
    TRY(onnxruntime_check((engine)->api, (engine)->api->call, doing, error))

static llm_status find_provider(const char *name, const Provider **provider, llm_error *error) {
    for (size_t i = 0; i < sizeof providers / sizeof *providers; i++) {
        *provider = &providers[i];
        if (strcmp(name ? name : "cpu", providers[i].name) == 0)
            return LLM_OK;
    }
    return fail(error, LLM_INVALID_ARGUMENT,
                "The provider is '%s', but must be one of cpu, cuda, tensorrt-rtx.", name);
}

static llm_status set_entry(const Engine *engine, OrtSessionOptions *options, const char *key,
                            const char *value, llm_error *error) {
    ORT(engine, AddSessionConfigEntry(options, key, value), key);
    return LLM_OK;
}

/* Let our kernels run in place of ONNX Runtime's where all floats are of their type. */
static llm_status register_kernels(const Engine *engine, const Manifest *manifest,
                                   OrtSessionOptions *options, llm_error *error) {
    if (manifest->logits == FLOAT32)
        TRY(set_entry(engine, options, "export_llm.float32", "1", error));
    if (manifest->cache == FLOAT32)
        TRY(set_entry(engine, options, "export_llm.float32_cache", "1", error));
    ORT(engine, RegisterCustomOpsLibrary_V2(options, engine->kernels), "loading kernels");
    return LLM_OK;
}

/* Integer weights that our kernels don't take are slow as stored. */
static bool needs_packing(const Engine *engine, const Manifest *manifest) {
    return manifest->has_integer_activations || (manifest->has_integer_weights && !engine->kernels);
}

static llm_status set_cpu_options(const Engine *engine, const Manifest *manifest,
                                  const llm_model_options *given, OrtSessionOptions *options,
                                  llm_error *error) {
    const bool packs = given->prepack || needs_packing(engine, manifest);
    const bool has_products = engine->kernels && manifest->logits == FLOAT32;
    TRY(set_entry(engine, options, "session.disable_prepacking", packs ? "0" : "1", error));
    TRY(set_entry(engine, options, "optimization.disable_specified_optimizers",
                  has_products ? slow_fusions_and_other_products : slow_fusions, error));
    return engine->kernels ? register_kernels(engine, manifest, options, error) : LLM_OK;
}

static llm_status set_options(const Engine *engine, const Provider *provider,
                              const Manifest *manifest, const llm_model_options *given,
                              OrtSessionOptions *options, llm_error *error) {
    const int threads = given->threads ? (int)given->threads : physical_cores();
    ORT(engine, SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR), "its options");
    ORT(engine, SetIntraOpNumThreads(options, threads), "its options");
    ORT(engine, SetInterOpNumThreads(options, 1), "its options");
    /* The shapes of prefill and decode differ: a remembered pattern would keep prefill's peak. */
    ORT(engine, DisableMemPattern(options), "its options");
    if (!provider->ort_name)
        return set_cpu_options(engine, manifest, given, options, error);
    ORT(engine, SessionOptionsAppendExecutionProvider(options, provider->ort_name, NULL, NULL, 0),
        "adding the provider");
    return LLM_OK;
}

static llm_status open_session(Engine *engine, const char *path, const Provider *provider,
                               const Manifest *manifest, const llm_model_options *given,
                               llm_error *error) {
    OrtSessionOptions *options;
    ORT(engine, CreateSessionOptions(&options), "its options");
    llm_status status = set_options(engine, provider, manifest, given, options, error);
    if (status == LLM_OK)
        status = onnxruntime_check(
            engine->api, engine->api->CreateSession(engine->env, path, options, &engine->session),
            "opening the graph", error);
    engine->api->ReleaseSessionOptions(options);
    return status;
}

static llm_status open_gpu_memory(Engine *engine, llm_error *error) {
    ORT(engine, CreateMemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault, &engine->cache),
        "describing the GPU's memory");
    ORT(engine, CreateAllocator(engine->session, engine->cache, &engine->gpu),
        "reaching the GPU's memory");
    return LLM_OK;
}

llm_status engine_open(const char *path, const Manifest *manifest, const llm_model_options *options,
                       Memory *memory, Engine *engine, llm_error *error) {
    const Provider *provider;
    OnnxRuntime runtime;
    *engine = (Engine){0};
    TRY(find_provider(options->provider, &provider, error));
    TRY(onnxruntime_load(options->onnxruntime, &runtime, error));
    engine->api = runtime.api;
    engine->version = runtime.version;
    engine->provider = provider->name;
    if (!provider->ort_name)
        TRY(kernels_find(options->kernels, memory, &engine->kernels, error));
    /* Its own attention is a third faster without its online softmax; see serving/onnxruntime.py.
     */
    setenv("ORT_GQA_DISABLE_FLASH_ATTENTION", "1", 0);
    ORT(engine, CreateEnv(ORT_LOGGING_LEVEL_ERROR, "llm_runtime", &engine->env), "starting");
    TRY(open_session(engine, path, provider, manifest, options, error));
    /* Most of ONNX Runtime's code that ran so far only opens sessions: 14 MB of its 20. */
    void *somewhere;
    memcpy(&somewhere, &engine->api->CreateSession, sizeof somewhere);
    code_pages_release(somewhere);
    ORT(engine, CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &engine->host),
        "describing memory");
    if (provider->ort_name)
        return open_gpu_memory(engine, error);
    engine->cache = engine->host;
    ORT(engine, CreateRunOptions(&engine->after_prompt), "its options");
    ORT(engine,
        AddRunConfigEntry(engine->after_prompt, "memory.enable_memory_arena_shrinkage", "cpu:0"),
        "its options");
    return LLM_OK;
}

void engine_close(Engine *engine) {
    const OrtApi *const api = engine->api;
    if (!api)
        return;
    api->ReleaseRunOptions(engine->after_prompt);
    if (engine->gpu)
        api->ReleaseAllocator(engine->gpu);
    if (engine->cache != engine->host)
        api->ReleaseMemoryInfo(engine->cache);
    api->ReleaseMemoryInfo(engine->host);
    api->ReleaseSession(engine->session);
    api->ReleaseEnv(engine->env);
    *engine = (Engine){0};
}
