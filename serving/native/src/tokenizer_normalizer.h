/* What tokenizers do to a text before anything else. */
#pragma once

#include "tokenizer_pattern.h"

#define MOST_NORMALIZERS 8

typedef enum { NORMALIZE_NFC, NORMALIZE_PREPEND, NORMALIZE_REPLACE } NormalizerKind;

typedef struct {
    NormalizerKind kind;
    Pattern pattern; /* of REPLACE */
    const char *content;
    size_t content_size;
} NormalizerStep;

typedef struct {
    NormalizerStep steps[MOST_NORMALIZERS];
    size_t count;
} Normalizer;

typedef struct {
    Buffer texts[2], points;
} NormalizerScratch;

/* Read the "normalizer" of a tokenizer.json, which may be null. */
llm_status normalizer_read(JsonValue json, Memory *memory, Normalizer *normalizer,
                           llm_error *error);

/* Point `*text` to what it becomes: to itself, or to memory of `scratch` until the next call. */
llm_status normalizer_run(const Normalizer *normalizer, const char **text, size_t *size,
                          NormalizerScratch *scratch, RegexScratch *regex_scratch,
                          llm_error *error);
