#include "text_stream.h"

#include "failure.h"

/* Tokens of the longest piece of a usual text. */
enum { WINDOW = 64 };

llm_status text_stream_create(const llm_model *model, TextStream *stream, llm_error *error) {
    const llm_allocator *const allocator = &model->memory.allocator;
    const char *text;
    size_t size;
    stream->model = model;
    stream->memory = memory_from(allocator);
    tokenizer_scratch_begin(&stream->scratch, allocator);
    detokenizer_begin(&stream->detokenizer, model->tokenizer, &stream->scratch, allocator);
    /* A text of so many tokens makes all the room that others need. */
    for (llm_token id = 0; model->tokenizer && id < WINDOW; id++)
        TRY(text_stream_push(stream, id, id == WINDOW - 1, &text, &size, error));
    return text_stream_restart(stream, NULL, 0, error);
}

void text_stream_free(TextStream *stream) {
    if (!stream->model)
        return;
    detokenizer_end(&stream->detokenizer);
    tokenizer_scratch_end(&stream->scratch);
    memory_free(&stream->memory);
}

llm_status text_stream_restart(TextStream *stream, const llm_token *prompt, size_t count,
                               llm_error *error) {
    if (!stream->model->tokenizer)
        return LLM_OK;
    return detokenizer_restart(&stream->detokenizer, prompt, count, error);
}

llm_status text_stream_push(TextStream *stream, llm_token id, bool is_last, const char **text,
                            size_t *size, llm_error *error) {
    Buffer *const piece = &stream->piece;
    const char *certain;
    size_t certain_size;
    *text = "";
    *size = piece->count = 0;
    if (!stream->model->tokenizer)
        return LLM_OK;
    TRY(detokenizer_push(&stream->detokenizer, id, &certain, &certain_size, error));
    TRY(buffer_append(piece, certain, certain_size, &stream->memory, error));
    if (is_last) {
        TRY(detokenizer_finish(&stream->detokenizer, &certain, &certain_size, error));
        TRY(buffer_append(piece, certain, certain_size, &stream->memory, error));
    }
    TRY(buffer_append(piece, "", 1, &stream->memory, error));
    *text = piece->items;
    *size = piece->count - 1;
    return LLM_OK;
}
