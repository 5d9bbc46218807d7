#include "tokenizer_vocabulary.h"

#include <string.h>

#include "failure.h"

/* Ids that no token has are few in real vocabularies; memory is for one token an id. */
#define MOST_GAPS 65536
/* Tokens that are looked up as they stand in a JSON text; longer ones are no tokens. */
#define LONGEST_LOOKED_UP 1024

static uint64_t hash(const char *text, size_t size) {
    uint64_t value = 0xcbf29ce484222325; /* FNV-1a */
    for (size_t i = 0; i < size; i++)
        value = (value ^ (unsigned char)text[i]) * 0x100000001b3;
    return value ^ value >> 32;
}

/* The slot of a token, or the free one where it would be. */
static size_t find_slot(const Vocabulary *vocabulary, const char *text, size_t size) {
    const size_t mask = vocabulary->slot_count - 1;
    for (size_t slot = hash(text, size) & mask;; slot = (slot + 1) & mask) {
        const uint32_t entry = vocabulary->slots[slot];
        if (!entry)
            return slot;
        const Token *token = &vocabulary->tokens[entry - 1];
        if (token->size == size && memcmp(token->text, text, size) == 0)
            return slot;
    }
}

uint32_t vocabulary_find(const Vocabulary *vocabulary, const char *text, size_t size) {
    /* An empty slot holds 0: one less is NO_TOKEN. */
    return vocabulary->slots[find_slot(vocabulary, text, size)] - 1;
}

uint32_t vocabulary_find_json(const Vocabulary *vocabulary, JsonValue string) {
    char text[LONGEST_LOOKED_UP];
    const size_t size = json_string_size(string);
    if (json_type(string) != JSON_STRING || size > sizeof text)
        return NO_TOKEN;
    json_string_copy(string, text);
    return vocabulary_find(vocabulary, text, size);
}

static llm_status measure(JsonValue vocab, size_t *count, size_t *text_size, int64_t *last,
                          llm_error *error) {
    *count = *text_size = 0;
    *last = -1;
    for (JsonItems items = json_items(vocab); json_next(&items); ++*count) {
        int64_t id;
        if (!json_integer(items.value, &id) || id < 0)
            return fail(error, LLM_DAMAGED, "A token of tokenizer.json has no id.");
        *last = id > *last ? id : *last;
        *text_size += json_string_size(items.name);
    }
    if (json_type(vocab) != JSON_OBJECT || *last >= (int64_t)(*count + MOST_GAPS))
        return fail(error, LLM_DAMAGED, "tokenizer.json has no vocabulary, or its ids are sparse.");
    return LLM_OK;
}

llm_status vocabulary_read(JsonValue vocab, Memory *memory, Vocabulary *vocabulary,
                           llm_error *error) {
    size_t count, text_size;
    int64_t last;
    char *text;
    TRY(measure(vocab, &count, &text_size, &last, error));
    vocabulary->id_count = (size_t)(last + 1);
    for (vocabulary->slot_count = 4; vocabulary->slot_count < 2 * count;)
        vocabulary->slot_count *= 2;
    TRY(memory_take(memory, text_size + 1, 1, &text, error));
    TRY(memory_take(memory, vocabulary->id_count, sizeof(Token), &vocabulary->tokens, error));
    TRY(memory_take(memory, vocabulary->slot_count, sizeof(uint32_t), &vocabulary->slots, error));
    for (JsonItems items = json_items(vocab); json_next(&items);) {
        int64_t id;
        const size_t size = json_string_size(items.name);
        json_integer(items.value, &id);
        json_string_copy(items.name, text);
        const size_t slot = find_slot(vocabulary, text, size);
        if (vocabulary->slots[slot] || vocabulary->tokens[id].text)
            return fail(error, LLM_DAMAGED,
                        "tokenizer.json has two tokens of id %lld, or a token twice.",
                        (long long)id);
        vocabulary->tokens[id] = (Token){text, (uint32_t)size};
        vocabulary->slots[slot] = (uint32_t)id + 1;
        text += size;
    }
    return LLM_OK;
}
