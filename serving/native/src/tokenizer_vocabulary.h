/* The tokens of a model: text to id and id to text. */
#pragma once

#include "json.h"
#include "memory.h"

#define NO_TOKEN UINT32_MAX

typedef struct {
    const char *text; /* NULL if there is no such token */
    uint32_t size;    /* in bytes */
} Token;

typedef struct {
    Token *tokens; /* [id_count] */
    size_t id_count;
    uint32_t *slots; /* a hash table: id + 1, or 0 */
    size_t slot_count;
} Vocabulary;

/* Read {"token": id, ...}. Its text is copied. */
llm_status vocabulary_read(JsonValue vocab, Memory *memory, Vocabulary *vocabulary,
                           llm_error *error);

/* The id of a token, or NO_TOKEN. */
uint32_t vocabulary_find(const Vocabulary *vocabulary, const char *text, size_t size);

/* The id of a JSON string's text. */
uint32_t vocabulary_find_json(const Vocabulary *vocabulary, JsonValue string);
