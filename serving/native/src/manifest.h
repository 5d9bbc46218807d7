/* The manifest of a bundle, bundle.json: what serving/bundle.py checks, as far as one engine of
 * ONNX Runtime needs it. */
#pragma once

#include "llm_runtime.h"
#include "memory.h"
#include "sha256.h"

typedef enum { FLOAT32, FLOAT16, BFLOAT16, INT8, ELEMENT_TYPES } ElementType;

extern const size_t element_bytes[ELEMENT_TYPES];

typedef struct {
    size_t kv_heads;
    size_t dims[2]; /* of keys and of values */
} Layer;

typedef struct {
    const char *name; /* relative to the bundle, and inside it */
    uint64_t size;
    unsigned char sha256[SHA256_BYTES];
} BundleFile;

typedef struct {
    const char *name;
    const char *architecture;
    const char *engine_file;
    uint64_t weight_bytes;
    size_t max_rows;     /* 0: any */
    size_t max_sequence; /* 0: any */
    size_t vocab_size;
    size_t max_length;
    ElementType logits;
    ElementType cache;
    bool has_integer_weights;
    bool has_integer_activations;
    Layer *layers;
    size_t layer_count;
    llm_token bos; /* -1: none */
    llm_token *eos;
    size_t eos_count;
    BundleFile *files;
    size_t file_count;
} Manifest;

/* Read the text of a manifest, all of whose strings and arrays are taken from `memory`.
 *
 * Fails with LLM_NOT_A_BUNDLE if it isn't one, and with LLM_UNSUPPORTED if it is but has no engine
 * that this library runs. */
llm_status manifest_read(const char *text, size_t size, Memory *memory, Manifest *manifest,
                         llm_error *error);

/* The manifest's entry of a file, or NULL. */
const BundleFile *manifest_file(const Manifest *manifest, const char *name);

/* Bytes that one token takes in the KV cache, over all layers. */
uint64_t manifest_kv_bytes(const Manifest *manifest);
