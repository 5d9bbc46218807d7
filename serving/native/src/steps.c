#include "steps.h"

#include "halves.h"

#include <string.h>

struct Binding {
    OrtIoBinding *io;
    /* Where a step of one token a row has its logits, if that is what is bound. */
    const float *decodes_to;
};

static const ONNXTensorElementDataType element_types[ELEMENT_TYPES] = {
    [FLOAT32] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    [FLOAT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
    [BFLOAT16] = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
    [INT8] = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
};

#define ORT(engine, call)                                                                          \
    TRY(onnxruntime_check((engine)->api, (engine)->api->call, "a step", error))

static size_t binding_count(size_t rows) { return rows * (rows + 1) / 2; }

/* Runs of rows are numbered by their last row, then by their length. */
static Binding *binding_of(const Steps *steps, size_t first_row, size_t rows) {
    return &steps->bindings[binding_count(first_row + rows - 1) + rows - 1];
}

/* A tensor over memory that stays where it is. */
typedef struct {
    const OrtMemoryInfo *place;
    void *data;
    size_t bytes;
    const int64_t *shape;
    size_t dimensions;
    ONNXTensorElementDataType type;
} Tensor;

typedef OrtStatus *(*Bind)(OrtIoBinding *, const char *, const OrtValue *);

static llm_status bind(const Engine *engine, Bind bind_to, OrtIoBinding *io, const char *name,
                       const Tensor *tensor, llm_error *error) {
    OrtValue *value;
    ORT(engine,
        CreateTensorWithDataAsOrtValue(tensor->place, tensor->data, tensor->bytes, tensor->shape,
                                       tensor->dimensions, tensor->type, &value));
    OrtStatus *const status = bind_to(io, name, value);
    engine->api->ReleaseValue(value);
    return onnxruntime_check(engine->api, status, name, error);
}

static llm_status bind_cache(const Steps *steps, size_t first_row, size_t rows, OrtIoBinding *io,
                             llm_error *error) {
    const Engine *const engine = steps->engine;
    for (size_t i = 0; i < steps->cache->count; i++) {
        const CacheBuffer *const buffer = &steps->cache->buffers[i];
        int64_t shape[4];
        memcpy(shape, buffer->shape, sizeof shape);
        shape[0] = (int64_t)rows;
        const Tensor tensor = {
            .place = engine->cache,
            .data = (char *)buffer->data + first_row * buffer->row_bytes,
            .bytes = rows * buffer->row_bytes,
            .shape = shape,
            .dimensions = 4,
            .type = element_types[steps->cache->type],
        };
        TRY(bind(engine, engine->api->BindInput, io, buffer->past, &tensor, error));
        TRY(bind(engine, engine->api->BindOutput, io, buffer->present, &tensor, error));
    }
    return LLM_OK;
}

static llm_status open_binding(const Steps *steps, size_t first_row, size_t rows, Binding *binding,
                               llm_error *error) {
    if (binding->io)
        return LLM_OK;
    OrtIoBinding *io;
    ORT(steps->engine, CreateIoBinding(steps->engine->session, &io));
    const llm_status status = bind_cache(steps, first_row, rows, io, error);
    if (status == LLM_OK)
        binding->io = io;
    else
        steps->engine->api->ReleaseIoBinding(io);
    return status;
}

static llm_status bind_integers(const Engine *engine, OrtIoBinding *io, const char *name,
                                const int64_t *values, size_t rows, size_t columns,
                                size_t dimensions, llm_error *error) {
    const int64_t shape[] = {(int64_t)rows, (int64_t)columns};
    const Tensor tensor = {
        .place = engine->host,
        .data = (void *)values,
        .bytes = rows * columns * sizeof *values,
        .shape = shape,
        .dimensions = dimensions,
        .type = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
    };
    return bind(engine, engine->api->BindInput, io, name, &tensor, error);
}

/* Where logits are written as the graph has them: 2-byte ones at the end of the floats' memory. */
static void *stored_logits(const Steps *steps, const Step *step) {
    const size_t count = step->rows * step->picked * steps->vocab_size;
    return (char *)step->logits + count * (sizeof(float) - element_bytes[steps->logits]);
}

static llm_status bind_step(const Steps *steps, const Step *step, OrtIoBinding *io,
                            llm_error *error) {
    const Engine *const engine = steps->engine;
    const size_t rows = step->rows;
    TRY(bind_integers(engine, io, "input_ids", step->ids, rows, step->count, 2, error));
    TRY(bind_integers(engine, io, "past_lengths", step->past_lengths, rows, 1, 1, error));
    TRY(bind_integers(engine, io, "logits_positions", step->positions, rows, step->picked, 2,
                      error));
    const int64_t shape[] = {(int64_t)rows, (int64_t)step->picked, (int64_t)steps->vocab_size};
    const Tensor tensor = {
        .place = engine->host,
        .data = stored_logits(steps, step),
        .bytes = rows * step->picked * steps->vocab_size * element_bytes[steps->logits],
        .shape = shape,
        .dimensions = 3,
        .type = element_types[steps->logits],
    };
    return bind(engine, engine->api->BindOutput, io, "logits", &tensor, error);
}

/* Make a step of one token a row read its inputs where they are bound once and for all. */
static Step with_own_inputs(const Steps *steps, const Step *step) {
    Step own = *step;
    memcpy(steps->ids, step->ids, step->rows * sizeof *step->ids);
    memcpy(steps->past_lengths, step->past_lengths, step->rows * sizeof *step->past_lengths);
    memcpy(steps->positions, step->positions, step->rows * sizeof *step->positions);
    own.ids = steps->ids;
    own.past_lengths = steps->past_lengths;
    own.positions = steps->positions;
    return own;
}

static llm_status check(const Steps *steps, const Step *step, llm_error *error) {
    const KVCache *const cache = steps->cache;
    if (step->rows < 1 || step->first_row >= cache->rows ||
        step->rows > cache->rows - step->first_row)
        return fail(error, LLM_INVALID_ARGUMENT, "There are only %zu rows.", cache->rows);
    if (step->count < 1 || step->picked < 1 || (step->count > 1 && step->rows > 1))
        return fail(error, LLM_INVALID_ARGUMENT,
                    "A step is one token of each row, or several of one row.");
    for (size_t i = 0; i < step->rows; i++)
        if (step->past_lengths[i] < 0 || step->count > cache->capacity ||
            (uint64_t)step->past_lengths[i] > cache->capacity - step->count)
            return fail(error, LLM_NO_ROOM, "The tokens don't fit into a capacity of %zu.",
                        cache->capacity);
    for (size_t i = 0; i < step->rows * step->count; i++)
        if (step->ids[i] < 0 || (uint64_t)step->ids[i] >= steps->vocab_size)
            return fail(error, LLM_INVALID_ARGUMENT,
                        "There is a token id %lld, but ids are from 0 to %zu: use the tokenizer "
                        "that belongs to the model.",
                        (long long)step->ids[i], steps->vocab_size - 1);
    for (size_t i = 0; i < step->rows * step->picked; i++)
        if (step->positions[i] < 0 || (uint64_t)step->positions[i] >= step->count)
            return fail(error, LLM_INVALID_ARGUMENT, "A position isn't one of the new tokens.");
    return LLM_OK;
}

llm_status steps_create(const Engine *engine, const Manifest *manifest, const KVCache *cache,
                        Memory *memory, Steps *steps, llm_error *error) {
    const size_t rows = cache->rows;
    *steps = (Steps){.engine = engine,
                     .cache = cache,
                     .vocab_size = manifest->vocab_size,
                     .logits = manifest->logits};
    TRY(memory_take(memory, rows, sizeof(int64_t), &steps->ids, error));
    TRY(memory_take(memory, rows, sizeof(int64_t), &steps->past_lengths, error));
    TRY(memory_take(memory, rows, sizeof(int64_t), &steps->positions, error));
    TRY(memory_take(memory, binding_count(rows), sizeof(Binding), &steps->bindings, error));
    return open_binding(steps, 0, 1, binding_of(steps, 0, 1), error);
}

llm_status steps_run(const Steps *steps, const Step *step, llm_error *error) {
    TRY(check(steps, step, error));
    const Engine *const engine = steps->engine;
    Binding *const binding = binding_of(steps, step->first_row, step->rows);
    const bool decodes = step->count == 1 && step->picked == 1;
    const Step bound = decodes ? with_own_inputs(steps, step) : *step;
    TRY(open_binding(steps, step->first_row, step->rows, binding, error));
    if (!decodes || binding->decodes_to != step->logits) {
        binding->decodes_to = NULL;
        TRY(bind_step(steps, &bound, binding->io, error));
        binding->decodes_to = decodes ? step->logits : NULL;
    }
    ORT(engine, RunWithBinding(engine->session, step->gives_back ? engine->after_prompt : NULL,
                               binding->io));
    const size_t values = step->rows * step->picked * steps->vocab_size;
    if (steps->logits == FLOAT16)
        widen_float16(step->logits, values);
    else if (steps->logits == BFLOAT16)
        widen_bfloat16(step->logits, values);
    return LLM_OK;
}

void steps_free(Steps *steps) {
    if (!steps->bindings)
        return;
    for (size_t i = 0; i < binding_count(steps->cache->rows); i++)
        if (steps->bindings[i].io)
            steps->engine->api->ReleaseIoBinding(steps->bindings[i].io);
}
