#include "detokenizer.h"

#include <string.h>

#include "failure.h"

void detokenizer_begin(Detokenizer *detokenizer, const Tokenizer *tokenizer,
                       TokenizerScratch *scratch, const llm_allocator *allocator) {
    *detokenizer =
        (Detokenizer){.tokenizer = tokenizer, .scratch = scratch, .memory = memory_from(allocator)};
}

void detokenizer_end(Detokenizer *detokenizer) { memory_free(&detokenizer->memory); }

/* Decode all of the window but its first `from` tokens. */
static llm_status decode_window(Detokenizer *detokenizer, size_t from, const char **text,
                                size_t *size, llm_error *error) {
    const size_t count = detokenizer->window.count - from;
    const llm_token *ids = detokenizer->window.items;
    return tokenizer_decode(detokenizer->tokenizer, count ? ids + from : NULL, count, true,
                            detokenizer->scratch, text, size, error);
}

static bool is_character_start(char c) { return ((unsigned char)c & 0xc0) != 0x80; }

static size_t count_characters(const char *text, size_t size) {
    size_t count = 0;
    for (size_t i = 0; i < size; i++)
        count += is_character_start(text[i]);
    return count;
}

/* Leave out the text that was given before. */
static void skip_given(const Detokenizer *detokenizer, const char **text, size_t *size) {
    size_t at = 0;
    for (size_t count = 0; at < *size; at++)
        if (is_character_start((*text)[at]) && count++ == detokenizer->given_characters)
            break;
    *text += at;
    *size -= at;
}

static bool ends_with_replacement(const char *text, size_t size) {
    return size >= 3 && memcmp(text + size - 3, "\xef\xbf\xbd", 3) == 0;
}

/* How many of a prompt's last tokens are decoded together: one, or a run of bytes. */
static size_t count_last(const Detokenizer *detokenizer, const llm_token *prompt, size_t count) {
    size_t last = 0;
    while (last < count && tokenizer_is_byte(detokenizer->tokenizer, prompt[count - 1 - last]))
        last++;
    return last || !count ? last : 1;
}

llm_status detokenizer_restart(Detokenizer *detokenizer, const llm_token *prompt, size_t count,
                               llm_error *error) {
    Buffer *window = &detokenizer->window;
    const size_t last = count_last(detokenizer, prompt, count);
    const char *text;
    size_t size;
    window->count = detokenizer->given = detokenizer->given_characters = 0;
    if (last == 0 || tokenizer_is_silent(detokenizer->tokenizer, prompt[count - 1]))
        return LLM_OK;
    TRY(buffer_reserve(window, last, sizeof *prompt, &detokenizer->memory, error));
    memcpy(window->items, prompt + count - last, last * sizeof *prompt);
    window->count = last;
    TRY(decode_window(detokenizer, 0, &text, &size, error));
    if (ends_with_replacement(text, size)) {
        window->count = 0;
        return LLM_OK;
    }
    detokenizer->given = last;
    detokenizer->given_characters = count_characters(text, size);
    return LLM_OK;
}

llm_status detokenizer_push(Detokenizer *detokenizer, llm_token id, const char **text, size_t *size,
                            llm_error *error) {
    Buffer *window = &detokenizer->window;
    *text = "";
    *size = 0;
    if (tokenizer_is_silent(detokenizer->tokenizer, id))
        return LLM_OK;
    TRY(buffer_reserve(window, 1, sizeof id, &detokenizer->memory, error));
    ((llm_token *)window->items)[window->count++] = id;
    /* A decoder takes a run of byte tokens as one: any of them may still spoil it. */
    if (tokenizer_is_byte(detokenizer->tokenizer, id))
        return LLM_OK;
    /* What the next piece leaves out is this piece's text, decoded alone. */
    TRY(decode_window(detokenizer, detokenizer->given, text, size, error));
    const size_t characters = count_characters(*text, *size);
    TRY(decode_window(detokenizer, 0, text, size, error));
    if (ends_with_replacement(*text, *size)) {
        *size = 0;
        return LLM_OK;
    }
    skip_given(detokenizer, text, size);
    window->count -= detokenizer->given;
    if (detokenizer->given)
        memmove(window->items, (llm_token *)window->items + detokenizer->given,
                window->count * sizeof id);
    detokenizer->given = window->count;
    detokenizer->given_characters = characters;
    return LLM_OK;
}

llm_status detokenizer_finish(Detokenizer *detokenizer, const char **text, size_t *size,
                              llm_error *error) {
    TRY(decode_window(detokenizer, 0, text, size, error));
    skip_given(detokenizer, text, size);
    return LLM_OK;
}
