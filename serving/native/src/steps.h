/* Steps of the graph over rows of a KV cache, which is bound once and updated in place. */
#pragma once

#include "kv_cache.h"

typedef struct Binding Binding;

typedef struct {
    const Engine *engine;
    const KVCache *cache;
    size_t vocab_size;
    ElementType logits;
    Binding *bindings; /* one for each run of rows */
    /* Inputs of steps of one token of each row, [rows] each: their addresses stay bound. */
    int64_t *ids, *past_lengths, *positions;
} Steps;

/* After steps of so many tokens, memory that the graph's buffers took is given back. */
enum { LONG_PROMPT = 32 };

/* New tokens of a run of rows; see llm_session_step. */
typedef struct {
    size_t first_row, rows, count, picked;
    const int64_t *ids, *past_lengths, *positions;
    float *logits;
    bool gives_back; /* that memory */
} Step;

llm_status steps_create(const Engine *engine, const Manifest *manifest, const KVCache *cache,
                        Memory *memory, Steps *steps, llm_error *error);

/* Run a step. Fails with LLM_INVALID_ARGUMENT, or LLM_NO_ROOM, before anything runs. */
llm_status steps_run(const Steps *steps, const Step *step, llm_error *error);

/* Release the bindings. */
void steps_free(Steps *steps);
