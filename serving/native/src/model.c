#include "model.h"

#include "bundle.h"
#include "options.h"

#include <string.h>

static llm_status read_tokenizer(const char *bundle, Memory *scratch, llm_model *model,
                                 llm_error *error) {
    const char *path, *text;
    size_t size;
    TRY(path_join(bundle, "tokenizer.json", scratch, &path, error));
    TRY(file_read(path, scratch, &text, &size, error));
    return tokenizer_open(text, size, &model->memory, &model->tokenizer, error);
}

/* Bundles whose tokenizer this library doesn't have still run token ids. */
static llm_status open_tokenizer(const char *bundle, const llm_model_options *options,
                                 llm_model *model, llm_error *error) {
    if (options->without_tokenizer || !manifest_file(&model->manifest, "tokenizer.json")) {
        fail(&model->no_tokenizer, LLM_UNSUPPORTED,
             "The model has no tokenizer: give token ids, or a bundle with a tokenizer.json.");
        return LLM_OK;
    }
    Memory scratch = memory_from(&options->allocator);
    llm_status status = read_tokenizer(bundle, &scratch, model, &model->no_tokenizer);
    memory_free(&scratch);
    if (status == LLM_OK || status == LLM_UNSUPPORTED)
        return LLM_OK;
    return fail(error, status, "%s", model->no_tokenizer.message);
}

llm_status model_tokenizer(const llm_model *model, const Tokenizer **tokenizer, llm_error *error) {
    *tokenizer = model->tokenizer;
    return model->tokenizer ? LLM_OK
                            : fail(error, LLM_UNSUPPORTED, "%s", model->no_tokenizer.message);
}

static llm_status open_into(const char *bundle, const llm_model_options *options, llm_model *model,
                            llm_error *error) {
    const char *graph;
    Memory *const memory = &model->memory;
    TRY(bundle_open(bundle, !options->skip_checksums, memory, &model->manifest, error));
    TRY(open_tokenizer(bundle, options, model, error));
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
        .has_tokenizer = model->tokenizer != NULL,
        .layers = manifest->layer_count,
        .onnxruntime_version = model->engine.version,
        .kernels = model->engine.kernels,
    };
    memcpy(info, &known, info->size < sizeof known ? info->size : sizeof known);
}
