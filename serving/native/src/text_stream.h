/* A session's texts: prompts as tokens, and generated tokens as pieces of text. */
#pragma once

#include "detokenizer.h"
#include "model.h"

typedef struct {
    const llm_model *model;
    Memory memory;
    TokenizerScratch scratch;
    Detokenizer detokenizer;
    Buffer piece;
} TextStream;

/* Take what usual texts need. It must stay where it is. */
llm_status text_stream_create(const llm_model *model, TextStream *stream, llm_error *error);
void text_stream_free(TextStream *stream);

/* Begin another text, which goes on from a prompt. */
llm_status text_stream_restart(TextStream *stream, const llm_token *prompt, size_t count,
                               llm_error *error);

/* The text that is certain with a token, and with the last one what was held back. It is ended by a
 * 0 and lasts until the next; without a tokenizer it is empty. */
llm_status text_stream_push(TextStream *stream, llm_token id, bool is_last, const char **text,
                            size_t *size, llm_error *error);
