/* What fuzzing does with a tokenizer. */
#pragma once

#include <stdlib.h>

#include "detokenizer.h"
#include "utf8.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            abort();                                                                               \
    } while (0)

static void check_utf8(const char *text, size_t size) {
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        at += utf8_read(text + at, size - at, &code_point);
        CHECK(code_point != UTF8_INVALID);
    }
}

/* Decode ids as a whole and piece by piece: the pieces are as long as the whole. */
static void check_decoding(const Tokenizer *tokenizer, const llm_token *ids, size_t count,
                           TokenizerScratch *scratch) {
    const char *text;
    size_t size, streamed = 0;
    llm_error error;
    Detokenizer detokenizer;
    if (tokenizer_decode(tokenizer, ids, count, false, scratch, &text, &size, &error) != LLM_OK)
        return;
    check_utf8(text, size);
    CHECK(tokenizer_decode(tokenizer, ids, count, true, scratch, &text, &size, &error) == LLM_OK);
    check_utf8(text, size);
    detokenizer_begin(&detokenizer, tokenizer, scratch, &(llm_allocator){0});
    for (size_t i = 0; i <= count; i++) {
        const llm_status status =
            i < count ? detokenizer_push(&detokenizer, ids[i], &text, &streamed, &error)
                      : detokenizer_finish(&detokenizer, &text, &streamed, &error);
        if (status == LLM_OK)
            check_utf8(text, streamed);
    }
    detokenizer_end(&detokenizer);
}

static void use_tokenizer(const Tokenizer *tokenizer, const char *text, size_t size) {
    const size_t capacity = 4 * size + 64;
    llm_token *ids = malloc(capacity * sizeof *ids);
    TokenizerScratch scratch;
    llm_error error;
    size_t count;
    tokenizer_scratch_begin(&scratch, &(llm_allocator){0});
    if (tokenizer_encode(tokenizer, text, size, true, &scratch, ids, capacity, &count, &error) ==
        LLM_OK)
        check_decoding(tokenizer, ids, count, &scratch);
    tokenizer_scratch_end(&scratch);
    free(ids);
}

/* Two bytes are a token id. */
static inline void use_ids(const Tokenizer *tokenizer, const unsigned char *data, size_t size) {
    llm_token *ids = malloc((size / 2 + 1) * sizeof *ids);
    TokenizerScratch scratch;
    for (size_t i = 0; i < size / 2; i++)
        ids[i] = (data[2 * i] << 8 | data[2 * i + 1]) - 1;
    tokenizer_scratch_begin(&scratch, &(llm_allocator){0});
    check_decoding(tokenizer, ids, size / 2, &scratch);
    tokenizer_scratch_end(&scratch);
    free(ids);
}
