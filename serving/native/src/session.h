/* A text, its KV cache and what its steps need. */
#pragma once

#include "model.h"
#include "sampling.h"
#include "steps.h"
#include "text_stream.h"

struct llm_session {
    Memory memory; /* holds this too */
    const llm_model *model;
    KVCache cache;
    Steps steps;
    size_t chunk;
    float *logits; /* [vocab_size] of the last token, if all of the text was run */
    Sampler sampler;
    Random random;
    TextStream stream;
    llm_token *tokens; /* [capacity] the text */
    size_t length;
    size_t prompt_length; /* tokens that weren't generated */
    size_t cached;        /* tokens that were run: the first ones */
};

/* Append tokens, which a step will run. Fails with LLM_NO_ROOM or LLM_INVALID_ARGUMENT. */
llm_status session_append(llm_session *session, const llm_token *ids, size_t count,
                          llm_error *error);

/* Append the tokens of a text, with the tokenizer's special ones if it is the first. */
llm_status session_append_text(llm_session *session, const char *text, llm_error *error);

/* Run what wasn't run yet, the last token at least. The text must not be empty. */
llm_status session_run(llm_session *session, llm_error *error);

/* Choose the next token of the logits; `forbidden` ids aren't chosen. */
llm_status session_choose(llm_session *session, const llm_sampling *sampling,
                          const llm_token *forbidden, size_t forbidden_count, llm_token *id,
                          llm_error *error);
