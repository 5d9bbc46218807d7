/* Texts as token ids, and back. */
#include "model.h"

static llm_status no_tokenizer(llm_error *error) {
    return fail(
        error, LLM_UNSUPPORTED,
        "This bundle has no tokenizer.json: give token ids, or export a checkpoint that has "
        "a tokenizer.");
}

llm_status llm_tokenize(const llm_model *model, const char *text, size_t length, bool special,
                        llm_token *ids, size_t capacity, size_t *count, llm_error *error) {
    (void)model, (void)text, (void)length, (void)special, (void)ids, (void)capacity, (void)count;
    return no_tokenizer(error);
}

llm_status llm_detokenize(const llm_model *model, const llm_token *ids, size_t count, char *text,
                          size_t capacity, size_t *length, llm_error *error) {
    (void)model, (void)ids, (void)count, (void)text, (void)capacity, (void)length;
    return no_tokenizer(error);
}
