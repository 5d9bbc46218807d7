/* Texts as token ids, and back. */
#include "model.h"

#include <string.h>

llm_status llm_tokenize(const llm_model *model, const char *text, size_t length, bool special,
                        llm_token *ids, size_t capacity, size_t *count, llm_error *error) {
    const Tokenizer *tokenizer;
    TokenizerScratch scratch;
    TRY(model_tokenizer(model, &tokenizer, error));
    tokenizer_scratch_begin(&scratch, &model->memory.allocator);
    const llm_status status =
        tokenizer_encode(tokenizer, text, length, special, &scratch, ids, capacity, count, error);
    tokenizer_scratch_end(&scratch);
    return status;
}

static llm_status copy_text(const char *text, size_t size, char *copy, size_t capacity,
                            size_t *length, llm_error *error) {
    *length = size;
    if (size >= capacity)
        return fail(error, LLM_NO_ROOM, "The text has %zu bytes, but there is room for %zu.",
                    size + 1, capacity);
    memcpy(copy, text, size);
    copy[size] = '\0';
    return LLM_OK;
}

llm_status llm_detokenize(const llm_model *model, const llm_token *ids, size_t count, char *text,
                          size_t capacity, size_t *length, llm_error *error) {
    const Tokenizer *tokenizer;
    TokenizerScratch scratch;
    const char *decoded = "";
    size_t size = 0;
    TRY(model_tokenizer(model, &tokenizer, error));
    tokenizer_scratch_begin(&scratch, &model->memory.allocator);
    llm_status status =
        tokenizer_decode(tokenizer, ids, count, true, &scratch, &decoded, &size, error);
    if (status == LLM_OK)
        status = copy_text(decoded, size, text, capacity, length, error);
    tokenizer_scratch_end(&scratch);
    return status;
}
