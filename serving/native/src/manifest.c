#include "manifest.h"

#include "failure.h"
#include "json.h"

#include <string.h>

enum { FORMAT_VERSION = 1, CONTRACT_VERSION = 1 };

/* So large that nothing real is larger, so small that products fit into 64 bits. */
#define LARGEST_SIZE (INT64_C(1) << 24)
#define LARGEST_LENGTH (INT64_C(1) << 40)
#define LARGEST_FILE (INT64_C(1) << 50)

const size_t element_bytes[ELEMENT_TYPES] = {
    [FLOAT32] = 4, [FLOAT16] = 2, [BFLOAT16] = 2, [INT8] = 1};

typedef struct {
    Memory *memory;
    llm_error *error;
} Reader;

static llm_status invalid(const Reader *reader, const char *what) {
    return fail(reader->error, LLM_NOT_A_BUNDLE,
                "bundle.json is not a valid manifest (%s): export the model again.", what);
}

static llm_status unsupported(const Reader *reader, const char *what, const char *remedy) {
    return fail(reader->error, LLM_UNSUPPORTED, "The bundle %s: %s.", what, remedy);
}

/* A member that is a whole number from `least` to `most`. */
static llm_status read_integer(const Reader *reader, JsonValue object, const char *name,
                               int64_t least, int64_t most, int64_t *value) {
    const bool is_one = json_integer(json_member(object, name), value);
    return is_one && *value >= least && *value <= most ? LLM_OK : invalid(reader, name);
}

static llm_status read_size(const Reader *reader, JsonValue object, const char *name,
                            size_t *size) {
    int64_t value;
    TRY(read_integer(reader, object, name, 1, LARGEST_SIZE, &value));
    *size = (size_t)value;
    return LLM_OK;
}

static llm_status read_length(const Reader *reader, JsonValue object, const char *name,
                              size_t *length) {
    int64_t value;
    TRY(read_integer(reader, object, name, 1, LARGEST_LENGTH, &value));
    *length = (size_t)value;
    return LLM_OK;
}

static bool is_given(JsonValue value) {
    return json_type(value) != JSON_ABSENT && json_type(value) != JSON_NULL;
}

/* A length that may be null or absent: then it is 0. */
static llm_status read_limit(const Reader *reader, JsonValue object, const char *name,
                             size_t *length) {
    *length = 0;
    return is_given(json_member(object, name)) ? read_length(reader, object, name, length) : LLM_OK;
}

static llm_status read_bytes(const Reader *reader, JsonValue object, const char *name,
                             uint64_t *bytes) {
    int64_t value;
    TRY(read_integer(reader, object, name, 0, LARGEST_FILE, &value));
    *bytes = (uint64_t)value;
    return LLM_OK;
}

static llm_status read_flag(const Reader *reader, JsonValue object, const char *name, bool *flag) {
    const JsonType type = json_type(json_member(object, name));
    *flag = type == JSON_TRUE;
    return type == JSON_TRUE || type == JSON_FALSE || type == JSON_ABSENT ? LLM_OK
                                                                          : invalid(reader, name);
}

static llm_status copy_string(const Reader *reader, JsonValue string, const char *name,
                              const char **text) {
    if (json_type(string) != JSON_STRING)
        return invalid(reader, name);
    const size_t size = json_string_size(string);
    char *copy;
    TRY(memory_take(reader->memory, size + 1, 1, &copy, reader->error));
    json_string_copy(string, copy);
    *text = copy;
    return strlen(copy) == size ? LLM_OK : invalid(reader, name);
}

static llm_status read_string(const Reader *reader, JsonValue object, const char *name,
                              const char **text) {
    return copy_string(reader, json_member(object, name), name, text);
}

/* Whether a name is that of a file inside the bundle; see _inside_bundle in serving/bundle.py. */
static bool is_inside(const char *name) {
    if (!*name || *name == '/' || strpbrk(name, "\\:"))
        return false;
    for (const char *part = name; part; part = strchr(part, '/')) {
        part += *part == '/';
        if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0'))
            return false;
    }
    return strcmp(name, ".") != 0;
}

static llm_status copy_file_name(const Reader *reader, JsonValue string, const char **name) {
    TRY(copy_string(reader, string, "the name of a file", name));
    return is_inside(*name) ? LLM_OK : invalid(reader, "the name of a file");
}

static bool read_hexadecimal(JsonValue string, unsigned char bytes[SHA256_BYTES]) {
    static const char digits[] = "0123456789abcdef";
    char text[2 * SHA256_BYTES];
    if (json_string_size(string) != sizeof text)
        return false;
    json_string_copy(string, text);
    for (size_t i = 0; i < sizeof text; i++) {
        const char *const digit = memchr(digits, text[i], 16);
        if (!digit)
            return false;
        bytes[i / 2] = (unsigned char)(bytes[i / 2] << 4 | (digit - digits));
    }
    return true;
}

static llm_status read_files(const Reader *reader, JsonValue files, Manifest *manifest) {
    if (json_type(files) != JSON_OBJECT)
        return invalid(reader, "files");
    TRY(memory_take(reader->memory, json_count(files), sizeof(BundleFile), &manifest->files,
                    reader->error));
    for (JsonItems items = json_items(files); json_next(&items);) {
        BundleFile *const file = &manifest->files[manifest->file_count++];
        TRY(copy_file_name(reader, items.name, &file->name));
        TRY(read_bytes(reader, items.value, "size", &file->size));
        if (!read_hexadecimal(json_member(items.value, "sha256"), file->sha256))
            return invalid(reader, "sha256");
    }
    return LLM_OK;
}

static llm_status read_layers(const Reader *reader, JsonValue layers, Manifest *manifest) {
    if (json_type(layers) != JSON_ARRAY || json_count(layers) == 0)
        return invalid(reader, "layers");
    TRY(memory_take(reader->memory, json_count(layers), sizeof(Layer), &manifest->layers,
                    reader->error));
    for (JsonItems items = json_items(layers); json_next(&items);) {
        Layer *const layer = &manifest->layers[manifest->layer_count++];
        TRY(read_size(reader, items.value, "kv_heads", &layer->kv_heads));
        TRY(read_size(reader, items.value, "key_dim", &layer->dims[0]));
        TRY(read_size(reader, items.value, "value_dim", &layer->dims[1]));
    }
    return LLM_OK;
}

static llm_status read_element_types(const Reader *reader, JsonValue graph, Manifest *manifest) {
    const JsonValue type = json_member(graph, "dtype");
    const JsonValue quantized = json_member(graph, "quantized_cache");
    if (json_string_is(type, "float32"))
        manifest->logits = FLOAT32;
    else if (json_string_is(type, "float16"))
        manifest->logits = FLOAT16;
    else if (json_string_is(type, "bfloat16"))
        manifest->logits = BFLOAT16;
    else
        return invalid(reader, "dtype");
    manifest->cache = manifest->logits;
    if (json_string_is(quantized, "int8"))
        manifest->cache = INT8;
    else if (is_given(quantized))
        return invalid(reader, "quantized_cache");
    return LLM_OK;
}

static llm_status read_graph(const Reader *reader, JsonValue graph, Manifest *manifest) {
    int64_t contract;
    TRY(read_integer(reader, graph, "contract_version", 1, INT64_MAX, &contract));
    if (contract != CONTRACT_VERSION)
        return unsupported(reader, "follows another contract than version 1",
                           "export the model again");
    if (json_count(json_member(graph, "lora")) > 0)
        return unsupported(reader, "takes LoRA adapters, which the native runtime doesn't",
                           "export the model without --lora");
    TRY(read_size(reader, graph, "vocab_size", &manifest->vocab_size));
    TRY(read_length(reader, graph, "max_length", &manifest->max_length));
    TRY(read_flag(reader, graph, "integer_weights", &manifest->has_integer_weights));
    TRY(read_flag(reader, graph, "integer_activations", &manifest->has_integer_activations));
    TRY(read_element_types(reader, graph, manifest));
    return read_layers(reader, json_member(graph, "layers"), manifest);
}

static llm_status read_engine(const Reader *reader, JsonValue engines, Manifest *manifest) {
    if (json_type(engines) != JSON_ARRAY)
        return invalid(reader, "engines");
    for (JsonItems items = json_items(engines); json_next(&items);) {
        const JsonValue engine = items.value;
        if (is_given(json_member(engine, "stripped_from")))
            return unsupported(reader, "comes without its weights",
                               "put them in with serve-llm restore");
        if (!json_string_is(json_member(engine, "target"), "onnxruntime"))
            continue;
        if (json_count(json_member(engine, "stages")) > 0)
            return unsupported(reader, "is in stages, which the native runtime doesn't run",
                               "export the model without --stages");
        TRY(copy_file_name(reader, json_member(engine, "file"), &manifest->engine_file));
        TRY(read_bytes(reader, engine, "weight_bytes", &manifest->weight_bytes));
        TRY(read_limit(reader, engine, "max_batch", &manifest->max_rows));
        TRY(read_limit(reader, engine, "max_sequence", &manifest->max_sequence));
        return manifest_file(manifest, manifest->engine_file)
                   ? LLM_OK
                   : invalid(reader, "an engine that isn't listed under files");
    }
    return unsupported(reader, "has no engine for onnxruntime",
                       "export the model with --target onnxruntime");
}

static llm_status read_tokens(const Reader *reader, JsonValue tokens, Manifest *manifest) {
    const JsonValue eos = json_member(tokens, "eos");
    manifest->bos = -1;
    if (is_given(json_member(tokens, "bos")))
        TRY(read_integer(reader, tokens, "bos", 0, LARGEST_SIZE, &manifest->bos));
    TRY(memory_take(reader->memory, json_count(eos), sizeof(llm_token), &manifest->eos,
                    reader->error));
    for (JsonItems items = json_items(eos); json_next(&items);) {
        int64_t id;
        if (!json_integer(items.value, &id) || id < 0)
            return invalid(reader, "eos");
        /* A tokenizer may have ids that the model can't produce. */
        if ((uint64_t)id < manifest->vocab_size)
            manifest->eos[manifest->eos_count++] = id;
    }
    return LLM_OK;
}

llm_status manifest_read(const char *text, size_t size, Memory *memory, Manifest *manifest,
                         llm_error *error) {
    const Reader reader = {memory, error};
    JsonValue document;
    JsonError mistake;
    int64_t version;
    *manifest = (Manifest){0};
    if (!json_read(text, size, &document, &mistake))
        return fail(error, LLM_NOT_A_BUNDLE,
                    "bundle.json is not JSON (%s at byte %zu): copy the bundle again.",
                    mistake.reason, mistake.offset);
    TRY(read_integer(&reader, document, "format_version", 1, INT64_MAX, &version));
    if (version > FORMAT_VERSION)
        return unsupported(&reader, "was made by a newer export-llm", "upgrade or export again");
    const JsonValue model = json_member(document, "model");
    TRY(read_string(&reader, model, "name", &manifest->name));
    TRY(read_string(&reader, model, "architecture", &manifest->architecture));
    TRY(read_files(&reader, json_member(document, "files"), manifest));
    TRY(read_graph(&reader, json_member(document, "graph"), manifest));
    TRY(read_engine(&reader, json_member(document, "engines"), manifest));
    return read_tokens(&reader, json_member(document, "tokens"), manifest);
}

const BundleFile *manifest_file(const Manifest *manifest, const char *name) {
    for (size_t i = 0; i < manifest->file_count; i++)
        if (strcmp(manifest->files[i].name, name) == 0)
            return &manifest->files[i];
    return NULL;
}

uint64_t manifest_kv_bytes(const Manifest *manifest) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < manifest->layer_count; i++) {
        const Layer *const layer = &manifest->layers[i];
        bytes +=
            layer->kv_heads * (layer->dims[0] + layer->dims[1]) * element_bytes[manifest->cache];
    }
    return bytes;
}
