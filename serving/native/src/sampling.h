/* Choosing the next token: serving/sampling.py in C, with the same tokens of the same logits. */
#pragma once

#include "llm_runtime.h"
#include "memory.h"
#include "random.h"

/* What a choice needs beside its logits, for a vocabulary; allocated once. */
typedef struct {
    size_t vocab_size;
    float *scores;    /* [vocab] */
    float *weights;   /* [vocab] */
    uint32_t *order;  /* [vocab] ids */
    uint32_t *counts; /* [vocab] zeros between two choices */
} Sampler;

/* The tokens before the one that is chosen; the first `prompt` of them weren't generated. */
typedef struct {
    const llm_token *ids;
    size_t count;
    size_t prompt;
} Text;

llm_status sampler_create(size_t vocab_size, Memory *memory, Sampler *sampler, llm_error *error);

/* Check that all parameters are in their ranges. */
llm_status sampling_check(const llm_sampling *sampling, size_t vocab_size, llm_error *error);

/* Choose from `logits` [vocab], which stay as they are; `forbidden` ids aren't chosen. Greedy
 * choices leave `random` alone, any other takes one number. Fails with LLM_NOT_A_NUMBER for NaN. */
llm_status sampler_choose(const Sampler *sampler, const float *logits, const llm_sampling *sampling,
                          Text text, const llm_token *forbidden, size_t forbidden_count,
                          Random *random, llm_token *id, llm_error *error);
