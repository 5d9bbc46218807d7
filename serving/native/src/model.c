#include "model.h"

#include "bundle.h"
#include "options.h"

#include <string.h>

static llm_status open_into(const char *bundle, const llm_model_options *options, llm_model *model,
                            llm_error *error) {
    const char *graph;
    Memory *const memory = &model->memory;
    TRY(bundle_open(bundle, !options->skip_checksums, memory, &model->manifest, error));
    TRY(path_join(bundle, model->manifest.engine_file, memory, &graph, error));
    return engine_open(graph, &model->manifest, options, memory, &model->engine, error);
}

llm_status llm_model_open(const char *bundle, const llm_model_options *options, llm_model **model,
                          llm_error *error) {
    llm_model_options given = {.size = sizeof given};
    TRY(OPTIONS_READ(options, given, error));
    if (!given.allocator.allocate != !given.allocator.release)
        return fail(error, LLM_INVALID_ARGUMENT, "An allocator needs both of its functions.");
    Memory memory = memory_from(&given.allocator);
    llm_model *opened;
    TRY(memory_take(&memory, 1, sizeof *opened, &opened, error));
    opened->memory = memory;
    const llm_status status = open_into(bundle, &given, opened, error);
    if (status != LLM_OK)
        llm_model_close(opened);
    else
        *model = opened;
    return status;
}

void llm_model_close(llm_model *model) {
    if (!model)
        return;
    engine_close(&model->engine);
    Memory memory = model->memory; /* the model is in it */
    memory_free(&memory);
}

void llm_model_describe(const llm_model *model, llm_model_info *info) {
    const Manifest *const manifest = &model->manifest;
    llm_model_info known = {
        .size = info->size,
        .name = manifest->name,
        .architecture = manifest->architecture,
        .provider = model->engine.provider,
        .vocab_size = manifest->vocab_size,
        .max_length = manifest->max_length,
        .weight_bytes = manifest->weight_bytes,
        .kv_bytes_per_token = manifest_kv_bytes(manifest),
        .bos = manifest->bos,
        .eos = manifest->eos,
        .eos_count = manifest->eos_count,
        .layers = manifest->layer_count,
        .onnxruntime_version = model->engine.version,
        .kernels = model->engine.kernels,
    };
    memcpy(info, &known, info->size < sizeof known ? info->size : sizeof known);
}
